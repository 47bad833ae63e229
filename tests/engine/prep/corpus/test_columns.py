"""The text may stand inside structures, in columns without a type, and in dictionaries; memory stays bounded."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from automodel_cli.engine.prep.corpus import parquet_reader
from automodel_cli.engine.prep.corpus.input_file import local_file
from automodel_cli.engine.prep.corpus.parquet_reader import ParquetReader
from automodel_cli.errors import DataError
from tests.engine.prep.corpus.conftest import documents_of, skipped_of, source_of, texts_of, tiny_pieces

ROWS = [
    {"doc": {"text": "one", "meta": {"text": "deep"}}, "id": 1},
    {"doc": {"text": None, "meta": None}, "id": 2},
    {"doc": None, "id": 3},
    {"doc": {"text": "two", "meta": {"text": "er"}}, "id": 4},
]
TWO_NAMES = [{"doc.text": "plain", "doc": {"text": "nested"}}, {"doc.text": "other", "doc": {"text": "nested"}}]


def write(directory, ending, rows):
    path = directory / f"a{ending}"
    if ending == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("ending", [".parquet", ".jsonl"])
@pytest.mark.parametrize(("column", "texts"), [("doc.text", ["one", "two"]), ("doc.meta.text", ["deep", "er"])])
def test_a_dotted_name_leads_into_structures(tmp_path, ending, column, texts):
    """A structure that is null has a text that is null; from every cursor the rest follows."""
    source = source_of(write(tmp_path, ending, ROWS), text_column=column)

    assert documents_of(source) == texts
    assert skipped_of(source) == {"null": 2}
    with tiny_pieces(piece_bytes=30, piece_rows=1, batch_documents=1):
        first = next(source.batches())
        assert texts_of([first]) + documents_of(source, first.cursor) == texts


@pytest.mark.parametrize("ending", [".parquet", ".jsonl"])
def test_a_column_whose_own_name_has_a_dot_comes_first(tmp_path, ending):
    """Whatever else could be meant."""
    assert documents_of(source_of(write(tmp_path, ending, TWO_NAMES), text_column="doc.text")) == ["plain", "other"]


def test_lines_of_several_shapes_are_read_by_either_name(tmp_path):
    """Also where Arrow cannot read them as one block."""
    rows = [{"doc": "no object"}, {"doc": {"text": "nested"}}, {"doc.text": "plain", "doc": 5}, {"doc": {"text": 5}}]
    source = source_of(write(tmp_path, ".jsonl", rows), text_column="doc.text")

    assert documents_of(source) == ["nested", "plain"]
    assert skipped_of(source) == {"null": 1, "not_text": 1}


@pytest.mark.parametrize("ending", [".parquet", ".jsonl"])
def test_a_text_inside_a_structure_is_what_was_probably_meant(tmp_path, ending):
    """The columns are listed as they are; the help names the dotted path."""
    with pytest.raises(DataError, match=r"(?s)no column 'text'; the columns are doc, id\n.*did you mean `doc\.text`"):
        documents_of(source_of(write(tmp_path, ending, ROWS)))


def test_a_path_that_leads_to_no_text_is_refused_with_what_is_there(tmp_path):
    """A list is no structure."""
    path = write(tmp_path, ".parquet", [{"doc": {"texts": ["a"], "id": 1}}])

    for column in ("doc.texts", "doc"):
        with pytest.raises(DataError, match=rf"the column '{column}' holds (list|struct)<.*, not text"):
            documents_of(source_of(path, text_column=column))
    with pytest.raises(DataError, match=r"no column 'doc\.id\.text'"):
        documents_of(source_of(path, text_column="doc.id.text"))


@pytest.mark.parametrize("column", ["text", "doc.text", "doc.inside.text"])
def test_a_column_without_a_type_holds_null_documents(tmp_path, column):
    """As tools write a column in which every text is missing, among files that have some."""
    (tmp_path / "in").mkdir()
    parquet.write_table(
        pa.table({"text": pa.nulls(3), "doc": pa.array([{"text": None, "inside": None}] * 3)}),
        tmp_path / "in/a.parquet",
    )
    good = {"text": "good", "doc": {"text": "good", "inside": {"text": "good"}}}
    parquet.write_table(pa.Table.from_pylist([good]), tmp_path / "in/b.parquet")
    source = source_of(tmp_path / "in/*.parquet", text_column=column)

    assert documents_of(source) == ["good"]
    assert skipped_of(source) == {"null": 3}


@pytest.mark.parametrize("kind", ["plain", "dictionary"])
def test_equal_texts_that_are_stored_once_are_decoded_piece_by_piece(tmp_path, kind):
    """A file of some kilobytes holds 300 MB of text; never more than a piece of it is decoded and held."""
    text, count = "x y z " * 50_000, 1000
    values = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([text]))
    column = values if kind == "dictionary" else values.dictionary_decode()
    parquet.write_table(pa.table({"text": column}), tmp_path / "a.parquet", compression="zstd")
    del values, column
    before, rows, peak, largest = pa.total_allocated_bytes(), 0, 0, 0

    for piece in ParquetReader(local_file(tmp_path / "a.parquet"), "text").pieces(None):
        texts = piece.rows().texts
        rows += len(texts)
        largest = max(largest, texts.nbytes)
        peak = max(peak, pa.total_allocated_bytes() - before)
        del texts, piece

    assert rows == count
    assert largest <= parquet_reader._MAX_PIECE_BYTES + parquet_reader._ROWS_AT_ONCE * len(text)
    assert peak < 64_000_000


@pytest.mark.parametrize("kind", ["plain", "dictionary"])
def test_pieces_that_end_by_their_bytes_are_the_same_from_every_position(tmp_path, monkeypatch, kind):
    """Whatever the lengths of the texts, and wherever the reading begins."""
    monkeypatch.setattr(parquet_reader, "_MAX_PIECE_BYTES", 40)
    monkeypatch.setattr(parquet_reader, "PIECE_ROWS", 11)
    monkeypatch.setattr(parquet_reader, "_ROWS_AT_ONCE", 4)
    texts = pa.array([f"{number}:" + "x" * (number * 7 % 23) for number in range(60)])
    column = texts.dictionary_encode() if kind == "dictionary" else texts
    parquet.write_table(pa.table({"text": column}), tmp_path / "a.parquet", row_group_size=25)
    reader = ParquetReader(local_file(tmp_path / "a.parquet"), "text")

    whole = [(piece.end, piece.rows().texts.to_pylist()) for piece in reader.pieces(None)]

    assert [text for _, found in whole for text in found] == texts.to_pylist()
    assert max(len(found) for _, found in whole) < 11
    for number, (end, _) in enumerate(whole, start=1):
        assert [(piece.end, piece.rows().texts.to_pylist()) for piece in reader.pieces(end)] == whole[number:]


def test_a_large_column_of_a_row_group_is_read_in_stretches(tmp_path, monkeypatch):
    """With the same pieces as one that is read whole; what is read ahead does not grow with the row group."""
    path = tmp_path / "a.parquet"
    numbers = np.random.default_rng(0).integers(0, 10**18, (2000, 60)).tolist()
    parquet.write_table(
        pa.table({"text": [" ".join(map(str, row)) for row in numbers]}),
        path,
        data_page_size=4096,
        use_dictionary=False,
    )

    def pieces():
        before, peak, found = pa.total_allocated_bytes(), 0, []
        for piece in ParquetReader(local_file(path), "text").pieces(None):
            peak = max(peak, pa.total_allocated_bytes() - before)
            found.append((piece.end, piece.source_bytes, piece.rows().texts.to_pylist()))
        return found, peak

    monkeypatch.setattr(parquet_reader, "PIECE_ROWS", 20)
    whole, whole_peak = pieces()
    monkeypatch.setattr(parquet_reader, "_MAX_BUFFER_BYTES", 1000)
    monkeypatch.setattr(parquet_reader, "_STRETCH_BYTES", 4096)
    in_stretches, peak = pieces()

    assert in_stretches == whole
    assert peak < whole_peak / 2
