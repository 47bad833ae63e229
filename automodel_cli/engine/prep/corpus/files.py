"""Files on this machine, and standard input; the ending of a file's name chooses its reader."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from automodel_cli.engine.config.suggest import nearest
from automodel_cli.engine.prep.corpus.corpus import Corpus
from automodel_cli.engine.prep.corpus.csv_reader import CsvReader
from automodel_cli.engine.prep.corpus.input_file import CODECS, InputFile, fingerprint, local_file
from automodel_cli.engine.prep.corpus.json_reader import JsonReader
from automodel_cli.engine.prep.corpus.parquet_reader import ParquetReader
from automodel_cli.engine.prep.corpus.pieces import Reader
from automodel_cli.engine.prep.corpus.text_reader import BlockReader, LineReader, WholeReader
from automodel_cli.engine.prep.prep_options import SourceOptions, StdinFormat, TextDocuments
from automodel_cli.engine.prep.presets import PRESETS
from automodel_cli.engine.prep.source import SourceDescription
from automodel_cli.engine.shards.manifest import SourceRecord
from automodel_cli.errors import UsageError

STDIN = "-"
_GLOB = frozenset("*?[")
PARQUET = (".parquet", ".pq")
JSON_LINES = (".jsonl", ".ndjson", ".json")
CSV = {".csv": ",", ".tsv": "\t"}
TEXT = (".txt", ".text", ".md")
KINDS = ".parquet, .jsonl, .csv or .txt, also with .gz, .zst or .bz2 after it"

# Minimum of the pieces of a single text file: long enough to learn from, enough of them to hold some out.
_MIN_PIECE_BYTES = 8192


def open_files(options: SourceOptions, column: str) -> Corpus:
    """The documents of the files that the user names.

    Raises:
        UsageError: A name is no file, a pattern matches none, or a file is of another kind.
    """
    paths = find_files(options.sources)
    files = [local_file(path) for path in paths]
    text_documents = options.text_documents
    # A single text file is cut, or no document of it could be held out for validation.
    if text_documents is None and sum(file.ending in TEXT for file in files) > 1:
        text_documents = TextDocuments.FILE
    readers = [reader_for(file, column, options.max_document_bytes, text_documents) for file in files]
    has_columns = any(file.ending not in TEXT for file in files)
    return Corpus(
        readers,
        SourceDescription("files", tuple(map(str, paths)), column if has_columns else None, resumable=True),
        SourceRecord(" ".join(options.sources), sha256=fingerprint(files, [path.name for path in paths])),
        options.max_document_bytes,
        options.on_bad_document,
    )


def find_files(names: Sequence[str]) -> list[Path]:
    """The files of all names and glob patterns: as they are named, each pattern's in order of their names.

    A file that several of them name is there once.

    Raises:
        UsageError: A name is neither a preset nor a file, or a directory.
    """
    found: dict[Path, None] = {}
    for name in names:
        expanded = Path(name).expanduser()
        # A file may have a bracket in its name.
        if expanded.is_file():
            found[expanded] = None
            continue
        if expanded.is_dir():
            raise UsageError(
                f"{name} is a directory", help=f"name its files with a pattern: '{name.rstrip('/')}/*.parquet'"
            )
        root = Path(expanded.anchor)
        matches = sorted(root.glob(str(expanded.relative_to(root)))) if _GLOB & set(name) else []
        files = [path for path in matches if path.is_file()]
        if not files:
            raise _unknown(name)
        found |= dict.fromkeys(files)
    return list(found)


def _unknown(name: str) -> UsageError:
    preset = nearest(name, PRESETS)
    meant = f"did you mean `{preset}`? " if preset else ""
    return UsageError(
        f"{name!r} is neither a preset nor a file",
        help=f"{meant}Presets are {', '.join(PRESETS)}; files end in {KINDS}, and a pattern goes in quotes; "
        "a data set on the hub is named with --dataset",
    )


def open_stdin(options: SourceOptions, column: str, stdin: BinaryIO | None = None) -> Corpus:
    """The documents that come on standard input; they can be read once.

    Args:
        options: What the user asks for.
        column: Field of a JSON line that holds the text.
        stdin: Instead of the process's own.
    """
    stream = io.BufferedReader(_Unseekable(stdin or sys.stdin.buffer))
    file = InputFile("standard input", None, lambda: stream)
    wanted = options.stdin_format or _detect(stream)
    reader = (
        JsonReader(file, column, options.max_document_bytes)
        if wanted == StdinFormat.JSONL
        else text_reader(file, options.max_document_bytes, options.text_documents)
    )
    has_columns = wanted == StdinFormat.JSONL
    return Corpus(
        [reader],
        SourceDescription("stdin", ("standard input",), column if has_columns else None, resumable=False),
        SourceRecord("standard input"),
        options.max_document_bytes,
        options.on_bad_document,
    )


class _Unseekable(io.RawIOBase):
    """A stream that can be peeked into when a buffer is put around it, whatever it is itself."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        content = self._stream.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


def _detect(stream: io.BufferedReader[_Unseekable]) -> StdinFormat:
    """JSON lines begin with a brace; so may text, and then the user has to say so.

    An array of objects is no JSON lines, which its reader says better than text would.
    """
    begin = stream.peek().removeprefix(b"\xef\xbb\xbf").lstrip()
    return StdinFormat.JSONL if begin.removeprefix(b"[").lstrip().startswith(b"{") else StdinFormat.TEXT


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
