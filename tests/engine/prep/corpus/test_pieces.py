"""Rows joined into documents: nothing is lost, wherever pieces and files end and reading begins again."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from automodel_cli.engine.prep.corpus.input_file import local_file
from automodel_cli.engine.prep.corpus.parquet_reader import ParquetReader
from automodel_cli.engine.prep.corpus.pieces import JoinedReader, Piece
from tests.engine.prep.corpus.conftest import as_parquet, tiny_pieces

FILES = st.lists(st.lists(st.sampled_from(["T", "x", "yy", ""]), min_size=1, max_size=12), min_size=1, max_size=3)


def joined(rows: list[str]) -> list[str]:
    """What comes out, said in the simplest way: a title begins a document unless nothing is before it."""
    documents: list[str] = []
    for number, row in enumerate(rows):
        if number == 0 or row == "T":
            documents.append("")
        documents[-1] += row
    return documents


def texts_of(pieces: list[Piece]) -> list[str]:
    return [text.decode() for piece in pieces for text in piece.rows().texts.to_pylist()]


@settings(max_examples=60, deadline=None)
@given(files=FILES, piece_rows=st.integers(1, 5))
def test_joining_loses_nothing_and_goes_on_from_every_piece(tmp_path_factory, files, piece_rows):
    """Documents may span pieces, row groups and files; the position after a piece gives the rest of them."""
    directory = tmp_path_factory.mktemp("rows")
    paths = [directory / f"{number}.parquet" for number in range(len(files))]
    for path, rows in zip(paths, files, strict=True):
        path.write_bytes(as_parquet(rows))

    with tiny_pieces(piece_rows=piece_rows):
        reader = JoinedReader([ParquetReader(local_file(path), "text") for path in paths], "T")
        whole = list(reader.pieces(None))

        assert texts_of(whole) == joined([row for rows in files for row in rows])
        for number, piece in enumerate(whole, start=1):
            rest = list(reader.pieces(piece.end))
            assert texts_of(rest) == texts_of(whole[number:])
            assert [(p.number, p.end, p.source_bytes) for p in rest] == [
                (p.number, p.end, p.source_bytes) for p in whole[number:]
            ]
