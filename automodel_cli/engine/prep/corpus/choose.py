"""Chooses the reader of a file by the file's ending."""

from __future__ import annotations

from pathlib import Path

from automodel_cli.engine.prep.corpus.csv_reader import CsvReader
from automodel_cli.engine.prep.corpus.json_reader import JsonReader
from automodel_cli.engine.prep.corpus.parquet_reader import ParquetReader
from automodel_cli.engine.prep.corpus.pieces import Reader
from automodel_cli.engine.prep.corpus.streams import CODECS, InputFile
from automodel_cli.engine.prep.corpus.text_reader import BlockReader, LineReader, WholeReader
from automodel_cli.engine.prep.options import TextDocuments
from automodel_cli.errors import UsageError

PARQUET = (".parquet", ".pq")
JSON_LINES = (".jsonl", ".ndjson", ".json")
CSV = {".csv": ",", ".tsv": "\t"}
TEXT = (".txt", ".text", ".md")
KINDS = ".parquet, .jsonl, .csv or .txt, also with .gz, .zst or .bz2 after it"

# Pieces of a text that stands alone; long enough to learn from, and many enough to hold some out.
_MIN_PIECE_BYTES = 8192


def stem_of(name: str) -> str:
    """A file's name without the ending of its kind and that of a compression; what else has dots stays.

    >>> stem_of("corpus-v1.5.jsonl.gz"), stem_of("corpus-v1.5")
    ('corpus-v1.5', 'corpus-v1.5')
    """
    path = Path(name)
    path = path.with_suffix("") if path.suffix.lower() in CODECS else path
    return path.stem if path.suffix.lower() in (*PARQUET, *JSON_LINES, *CSV, *TEXT, ".*") else path.name


def reader_for(file: InputFile, column: str, max_document_bytes: int, text_documents: TextDocuments | None) -> Reader:
    """The reader for a file.

    Args:
        file: Its ending says what it is.
        column: Column or field that holds the text, where there are any.
        max_document_bytes: Readers need not take longer documents whole.
        text_documents: What is a document in a text file; `None` cuts it at blank lines into
            pieces of 8 KiB and more.

    Raises:
        UsageError: The ending is of no kind that can be read.
    """
    if file.ending in PARQUET:
        return ParquetReader(file, column)
    if file.ending in JSON_LINES:
        return JsonReader(file, column, max_document_bytes)
    if file.ending in CSV:
        return CsvReader(file, column, max_document_bytes, CSV[file.ending])
    if file.ending in TEXT:
        return text_reader(file, max_document_bytes, text_documents)
    raise UsageError(f"{file.name} is no file that can be read", help=f"give files that end in {KINDS}")


def text_reader(file: InputFile, max_document_bytes: int, text_documents: TextDocuments | None) -> Reader:
    """The reader for a plain text file; arguments as for `reader_for`."""
    match text_documents:
        case TextDocuments.FILE:
            return WholeReader(file, max_document_bytes)
        case TextDocuments.LINE:
            return LineReader(file, max_document_bytes)
        case TextDocuments.BLOCK:
            return BlockReader(file, max_document_bytes)
        case None:
            return BlockReader(file, max_document_bytes, _MIN_PIECE_BYTES)
