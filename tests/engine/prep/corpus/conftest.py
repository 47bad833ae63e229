"""Corpora in every format, and readings of them with pieces so small that a few documents make many."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from automodel_cli.engine.prep.corpus import corpus, csv_reader, parquet_reader, text_reader
from automodel_cli.engine.prep.corpus.open_source import open_source
from automodel_cli.engine.prep.prep_options import SourceOptions
from automodel_cli.engine.prep.source import DocumentBatch


def as_parquet(documents: Sequence[str]) -> bytes:
    buffer = io.BytesIO()
    table = pa.table({"id": list(range(len(documents))), "text": pa.array(documents, pa.string())})
    parquet.write_table(table, buffer, row_group_size=7)
    return buffer.getvalue()


def as_json_lines(documents: Sequence[str]) -> bytes:
    rows = [
        json.dumps({"meta": {"n": [number, None]}, "text": text}, ensure_ascii=number % 2 == 0)
        for number, text in enumerate(documents)
    ]
    return "".join(row + "\n" for row in rows).encode()


def as_csv(documents: Sequence[str]) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(["id", "text"])
    writer.writerows(enumerate(documents))
    return buffer.getvalue().encode()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda content: pa.Codec("zstd").compress(content, asbytes=True),
}
WRITERS: dict[str, Callable[[Sequence[str]], bytes]] = {
    ".parquet": as_parquet,
    ".jsonl": as_json_lines,
    ".csv": as_csv,
}


@contextmanager
def tiny_pieces(piece_bytes: int = 64, piece_rows: int = 3, batch_documents: int = 4) -> Iterator[None]:
    """Pieces and batches of a few documents."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_reader, "PIECE_BYTES", piece_bytes)
        patch.setattr(csv_reader, "PIECE_BYTES", piece_bytes)
        patch.setattr(csv_reader, "PIECE_ROWS", piece_rows)
        patch.setattr(parquet_reader, "PIECE_ROWS", piece_rows)
        patch.setattr(corpus, "_BATCH_DOCUMENTS", batch_documents)
        yield


def source_of(*paths: Path | str, **options: object) -> corpus.Corpus:
    return open_source(SourceOptions(sources=tuple(map(str, paths)), **options))  # type: ignore[arg-type]


def texts_of(batches: Sequence[DocumentBatch]) -> list[str]:
    return [text for batch in batches for text in batch.texts.to_pylist()]


def documents_of(source: corpus.Corpus, start: str | None = None) -> list[str]:
    return texts_of(list(source.batches(start)))


def skipped_of(source: corpus.Corpus) -> dict[str, int]:
    counts: dict[str, int] = {}
    for batch in source.batches():
        for reason, number in batch.skipped.items():
            counts[reason] = counts.get(reason, 0) + number
    return counts
