"""What cannot be a document is left out and counted by reason, or ends the reading with its place."""

from __future__ import annotations

import json
import sys

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from automodel_cli.engine.prep.corpus import csv_reader
from automodel_cli.engine.prep.corpus.clean import clean
from automodel_cli.engine.prep.corpus.input_file import read_fully
from automodel_cli.engine.prep.corpus.pieces import Rows
from automodel_cli.errors import DataError
from tests.engine.prep.corpus.conftest import documents_of, skipped_of, source_of, tiny_pieces

LIMIT = 20
BAD_LINES = {
    b'{"text": null}': "null",
    b'{"id": 3}': "null",
    b'{"text": ""}': "empty",
    b'{"text": " \\n\\u2028\\u00a0"}': "empty",
    b'{"text": "' + b"x" * (LIMIT + 1) + b'"}': "too_large",
    b'{"text": "caf\xe9"}': "invalid_utf8",
    b'{"text": "\\ud83c"}': "lone_surrogate",
    b'{"text": "\xed\xa0\xbc"}': "lone_surrogate",
    b'{"text": ': "invalid_json",
    b'{"text": "a"} {"text": "b"}': "invalid_json",
    b"[" * 100_000: "invalid_json",
    b'["text"]': "not_an_object",
    b'{"text": 5}': "not_text",
    b'{"text": ["a"]}': "not_text",
}
GOOD_LINES = {
    b'{"text": "a", "text": "b"}': "b",
    b'{"te\\u0078t": "\\ud83c\\udf89"}': "🎉",
    b' {"text": "a", "meta": {"text": [1, {"deep": null}]}} ': "a",
    b'{"text": "nul \\u0000 in it"}': "nul \0 in it",
    b'{"number": 1e999, "text": "' + b"x" * LIMIT + b'"}': "x" * LIMIT,
}


@pytest.mark.parametrize(("line", "reason"), BAD_LINES.items())
def test_a_bad_json_line_is_counted_and_its_neighbours_are_read(tmp_path, line, reason):
    """Whether it is alone in its block or among good lines."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n')
    source = source_of(path, max_document_bytes=LIMIT)

    assert documents_of(source) == ["before", "after"]
    assert skipped_of(source) == {reason: 1}
    with tiny_pieces(piece_bytes=1):
        assert documents_of(source) == ["before", "after"]


@pytest.mark.parametrize(("line", "text"), GOOD_LINES.items())
def test_an_unusual_json_line_is_read(tmp_path, line, text):
    """As Python's parser reads it."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "before"}\n' + line)

    assert documents_of(source_of(path, max_document_bytes=LIMIT)) == ["before", text]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES.items())
def test_a_bad_json_line_is_named_by_its_number_when_it_shall_end_the_reading(tmp_path, line, reason):
    """Blank lines count, as they do in an editor."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "before"}\n\n' + line + b'\n{"text": "after"}\n')

    with pytest.raises(DataError, match=r"a\.jsonl:3: the document is bad: (it|the line) .*\n.*--on-bad-doc skip"):
        documents_of(source_of(path, max_document_bytes=LIMIT, on_bad_document="fail"))


def test_bad_rows_of_parquet_are_counted(tmp_path):
    """Without a Python object for any good row; the first is named by its number, over row groups."""
    values = pa.array([b"one", None, b"", b"\t \n", b"x" * 21, b"caf\xe9", b"\xed\xa0\xbc", b"two"], pa.binary())
    parquet.write_table(pa.table({"text": values}), tmp_path / "a.parquet", row_group_size=3)
    source = source_of(tmp_path / "a.parquet", max_document_bytes=LIMIT)

    assert documents_of(source) == ["one", "two"]
    assert skipped_of(source) == {"null": 1, "empty": 2, "too_large": 1, "invalid_utf8": 1, "lone_surrogate": 1}
    with pytest.raises(DataError, match=r"a\.parquet:2: the document is bad: it is null"):
        documents_of(source_of(tmp_path / "a.parquet", on_bad_document="fail"))


def test_bad_rows_of_csv_are_counted(tmp_path):
    """Rows of another shape too; a field that spans lines does not confuse the numbers."""
    (tmp_path / "a.csv").write_bytes(b'text,id\n"one\n1",1\n,2\ncaf\xe9,3\nx,4,5\ntwo,6\n' + b"x" * 21 + b",7\n")
    source = source_of(tmp_path / "a.csv", max_document_bytes=LIMIT)

    assert documents_of(source) == ["one\n1", "two"]
    assert skipped_of(source) == {"empty": 1, "invalid_utf8": 1, "invalid_csv": 1, "too_large": 1}
    with pytest.raises(DataError, match=r"a\.csv:4: the document is bad: it is empty"):
        documents_of(source_of(tmp_path / "a.csv", on_bad_document="fail"))


def test_bad_texts_are_counted(tmp_path):
    """Files that are empty, too large or in another encoding; those are not read to their end."""
    for name, content in {"a": b"one", "b": b"", "c": b"x" * 21, "d": "é".encode("utf-16")}.items():
        (tmp_path / f"{name}.txt").write_bytes(content)
    source = source_of(tmp_path / "*.txt", max_document_bytes=LIMIT)

    assert documents_of(source) == ["one"]
    assert skipped_of(source) == {"empty": 1, "too_large": 1, "invalid_utf8": 1}
    with pytest.raises(DataError, match=r"b\.txt:1: the document is bad"):
        documents_of(source_of(tmp_path / "*.txt", on_bad_document="fail"))


@pytest.mark.parametrize("mode", ["line", "block"])
def test_a_text_without_an_end_is_passed_over_in_bounded_memory(tmp_path, mode):
    """A line, or a block, far beyond the limit: what follows is read, and goes on from cursors."""
    between = "\n" if mode == "line" else "\n\n"
    (tmp_path / "a.txt").write_text(between.join(["one", "x" * 5000, "two", "y" * 90, "three", "z" * 700]))

    with tiny_pieces(piece_bytes=16, batch_documents=1):
        source = source_of(tmp_path / "a.txt", max_document_bytes=LIMIT, text_documents=mode)
        batches = list(source.batches())

        assert documents_of(source) == ["one", "two", "three"]
        assert skipped_of(source) == {"too_large": 3}
        for number, batch in enumerate(batches):
            assert documents_of(source, batch.cursor) == [t for b in batches[number + 1 :] for t in b.texts.to_pylist()]


@given(st.lists(st.one_of(st.none(), st.binary(max_size=8), st.text(max_size=4).map(str.encode)), max_size=12))
def test_what_is_kept_is_what_python_calls_a_text(values):
    """Not null, decodable, not blank and not too long, in order; everything else is counted."""
    found = clean(Rows(pa.array(values, pa.binary()), lambda row: row), max_document_bytes=6)

    kept = [value.decode() for value in values if value is not None and len(value) <= 6 and is_text(value)]
    assert found.texts.to_pylist() == kept
    assert sum(found.skipped.values()) == len(values) - len(kept)
    assert (found.first_bad is None) == (len(kept) == len(values))


def is_text(value: bytes) -> bool:
    try:
        return bool(value.decode().strip())
    except UnicodeDecodeError:
        return False


def test_white_space_is_what_python_calls_so():
    """Arrow's own test agrees on every code point, so blank documents are the same in any reader."""
    points = [chr(point) for point in range(sys.maxunicode + 1) if not 0xD800 <= point < 0xE000]

    found = pc.utf8_is_space(pa.array(points, pa.large_string())).to_pylist()

    assert [point for point, is_space in zip(points, found, strict=True) if is_space] == list(
        filter(str.isspace, points)
    )


@pytest.mark.parametrize("ending", [".parquet", ".jsonl", ".csv"])
def test_a_missing_column_is_an_error_that_lists_those_there_are(tmp_path, ending):
    """With the nearest name; whatever is to be done about bad documents."""
    path = tmp_path / f"a{ending}"
    if ending == ".parquet":
        parquet.write_table(pa.table({"id": [1], "text_": ["a"]}), path)
    elif ending == ".csv":
        path.write_text("id,text_\n1,a\n")
    else:
        path.write_text(json.dumps({"id": 1, "text_": "a"}))

    with pytest.raises(DataError, match=r"(?s)no column 'text'; the columns are id, text_.*did you mean `text_`"):
        documents_of(source_of(path))
    assert documents_of(source_of(path, text_column="text_")) == ["a"]


def test_a_column_of_numbers_is_refused(tmp_path):
    """Its type is named."""
    parquet.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")

    with pytest.raises(DataError, match="the column 'text' holds int64, not text"):
        documents_of(source_of(tmp_path / "a.parquet"))


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz", "a.jsonl.zst", "a.csv.gz", "a.parquet.gz"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, name):
    """Not a traceback of the library that reads it."""
    (tmp_path / name).write_bytes(b"PAR1 this is something else" * 9)

    with pytest.raises(DataError, match=f"{name}: the file cannot be read: "):
        documents_of(source_of(tmp_path / name))


def test_a_cut_compressed_file_is_an_error(tmp_path):
    """What is missing must not pass for the end of the text."""
    import gzip

    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-9])

    with pytest.raises(DataError, match=r"a\.jsonl\.gz: the file cannot be read: "):
        documents_of(source_of(tmp_path / "a.jsonl.gz"))


@pytest.mark.parametrize(("mark", "advice"), [(";", "';', but only commas"), ("\t", "ending .tsv")])
def test_another_mark_between_the_fields_of_csv_is_named(tmp_path, mark, advice):
    """Instead of a column with a strange name only."""
    (tmp_path / "a.csv").write_text(f"text{mark}id\none{mark}1\n")

    with pytest.raises(DataError, match=f"(?s)no column 'text'.*{advice}"):
        documents_of(source_of(tmp_path / "a.csv"))


@pytest.mark.parametrize("kind", ["csv", "parquet", "nested"])
def test_a_column_that_stands_twice_is_an_error(tmp_path, kind):
    """Neither of them is silently taken."""
    path = tmp_path / ("a.csv" if kind == "csv" else "a.parquet")
    column = "doc.text" if kind == "nested" else "text"
    texts = pa.array(["one"])
    if kind == "csv":
        path.write_text("text,text\none,two\n")
    elif kind == "parquet":
        parquet.write_table(pa.Table.from_arrays([texts, texts], ["text", "text"]), path)
    else:
        parquet.write_table(pa.table({"doc": pa.StructArray.from_arrays([texts, texts], ["text", "text"])}), path)

    with pytest.raises(DataError, match=f"the column '{column}' stands 2 times"):
        documents_of(source_of(path, text_column=column))


def test_a_line_of_csv_without_an_end_is_an_error_in_bounded_memory(tmp_path, monkeypatch):
    """The file is not read to its end for it."""
    (tmp_path / "a.csv").write_bytes(b"text\n" + b"x" * 40_000)
    read = []

    def counted(stream, size):
        read.append(size)
        return read_fully(stream, size)

    monkeypatch.setattr(csv_reader, "read_fully", counted)
    monkeypatch.setattr(csv_reader, "PIECE_BYTES", 100)

    with pytest.raises(DataError, match="a line has more than 560 bytes"):
        documents_of(source_of(tmp_path / "a.csv", max_document_bytes=LIMIT))

    assert sum(read) < 1000


def test_csv_with_a_quote_that_never_ends_is_an_error(tmp_path):
    """It would take all the rest of the file for one text."""
    (tmp_path / "a.csv").write_bytes(b'text\n"' + b"x" * 6_000_000)

    with pytest.raises(DataError, match=r"(?s)a\.csv:\d+: this is not CSV.*never closed"):
        documents_of(source_of(tmp_path / "a.csv", max_document_bytes=LIMIT))
