"""Every format gives back the documents that were written, from the beginning and from every cursor."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automodel_cli.engine.prep.corpus.corpus import Corpus
from tests.engine.prep.corpus.conftest import PACKERS, WRITERS, documents_of, source_of, texts_of, tiny_pieces

# What formats and readers are known to trip over: ends of line, quotes, marks, NUL, escapes, astral planes.
CHARACTERS = st.one_of(st.characters(codec="utf-8"), st.sampled_from("\n\r\t\0 ,\"'\\{}\u2028\u2029\x85\ufeff\x1c🎉é"))
DOCUMENTS = st.lists(st.text(CHARACTERS, min_size=1, max_size=40).filter(str.strip), max_size=25)
FORMATS = [(ending, packing) for ending in WRITERS for packing in PACKERS]
TEXT_MODES = ["line", "block"]


def as_text(documents: list[str], mode: str) -> bytes:
    return ("\n" if mode == "line" else "\n\n").join(documents).encode()


def read_in_two(source: Corpus) -> list[str]:
    """One batch, then what comes after its cursor."""
    first = list(source.batches())[:1]
    return [text for batch in first for text in [*batch.texts.to_pylist(), *documents_of(source, batch.cursor)]]


def plain(text: str) -> str:
    """What can be a document of plain text in every mode: no end of line, no mark at its beginning."""
    return text.replace("\n", " ").replace("\r", " ").lstrip("\ufeff")


@pytest.mark.parametrize(("ending", "packing"), FORMATS)
@settings(max_examples=25, deadline=None)
@given(documents=DOCUMENTS)
def test_documents_read_are_those_written(tmp_path_factory, ending, packing, documents):
    """In order, with nothing added or lost, for any Unicode text."""
    path = tmp_path_factory.mktemp("corpus") / f"a{ending}{packing}"
    path.write_bytes(PACKERS[packing](WRITERS[ending](documents)))

    with tiny_pieces():
        assert documents_of(source_of(path)) == documents


@pytest.mark.parametrize("mode", TEXT_MODES)
@pytest.mark.parametrize("packing", PACKERS)
@settings(max_examples=25, deadline=None)
@given(documents=DOCUMENTS.map(lambda texts: [text for text in map(plain, texts) if text.strip()]))
def test_plain_text_is_cut_where_it_says(tmp_path_factory, mode, packing, documents):
    """At every line, or at every run of blank lines."""
    path = tmp_path_factory.mktemp("corpus") / f"a.txt{packing}"
    path.write_bytes(PACKERS[packing](as_text(documents, mode)))

    with tiny_pieces():
        assert documents_of(source_of(path, text_documents=mode)) == documents


@pytest.mark.parametrize(("ending", "packing"), [*FORMATS, (".txt", ""), (".txt", ".gz")])
@settings(max_examples=15, deadline=None)
@given(documents=DOCUMENTS, rows=st.integers(1, 5), piece_bytes=st.integers(16, 200), batch=st.integers(1, 9))
def test_reading_goes_on_from_every_cursor(tmp_path_factory, ending, packing, documents, rows, piece_bytes, batch):
    """With the same batches that came after it, in a source that was opened anew; indices and cursors too."""
    path = tmp_path_factory.mktemp("corpus") / f"a{ending}{packing}"
    content = as_text(documents, "line") if ending == ".txt" else WRITERS[ending](documents)
    path.write_bytes(PACKERS[packing](content))
    options = {"text_documents": "line"} if ending == ".txt" else {}

    with tiny_pieces(piece_bytes, rows, batch):
        whole = list(source_of(path, **options).batches())

        for number, passed in enumerate(whole, start=1):
            rest = list(source_of(path, **options).batches(passed.cursor))
            assert texts_of(rest) == texts_of(whole[number:])
            assert [(b.first_document, b.cursor, b.source_bytes, b.skipped) for b in rest] == [
                (b.first_document, b.cursor, b.source_bytes, b.skipped) for b in whole[number:]
            ]


@settings(max_examples=25, deadline=None)
@given(documents=DOCUMENTS, piece_bytes=st.integers(16, 500), rows=st.integers(1, 9), batch=st.integers(1, 30))
@pytest.mark.parametrize("ending", WRITERS)
def test_the_documents_do_not_depend_on_how_they_are_gathered(
    tmp_path_factory, ending, documents, piece_bytes, rows, batch
):
    """Pieces and batches are for speed only; their bytes add up to those of the file."""
    path = tmp_path_factory.mktemp("corpus") / f"a{ending}"
    path.write_bytes(WRITERS[ending](documents))

    with tiny_pieces(piece_bytes, rows, batch):
        source = source_of(path)
        batches = list(source.batches())

    assert texts_of(batches) == documents
    indices = [b.first_document for b in batches]
    assert indices == [sum(len(b.texts) for b in batches[:n]) for n in range(len(batches))]
    if documents:
        assert abs(sum(b.source_bytes for b in batches) - source.total_bytes) <= len("id,text\r\n\n")


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("num_files", [1, 2, 5])
@pytest.mark.parametrize("ending", [*WRITERS, ".txt"])
def test_parts_hold_every_document_once(tmp_path, ending, num_files, count):
    """By files, by row groups or by pieces; and a part can be read on from its cursors."""
    corpora = [
        [f"document {number} of {file} {'x' * (number % 9)}" for number in range(40)] for file in range(num_files)
    ]
    for file, documents in enumerate(corpora):
        content = as_text(documents, "line") if ending == ".txt" else WRITERS[ending](documents)
        (tmp_path / f"{file}{ending}").write_bytes(content)
    options = {"text_documents": "line"} if ending == ".txt" else {}

    with tiny_pieces():
        parts = [source_of(tmp_path / f"*{ending}", **options).partition(index, count) for index in range(count)]
        read = [documents_of(part) for part in parts]
        resumed = [read_in_two(part) for part in parts]

    assert sorted(text for part in read for text in part) == sorted(text for corpus in corpora for text in corpus)
    assert resumed == read
    assert sum(bool(part) for part in read) > 1


def test_a_large_json_line_is_read_whole(tmp_path):
    """One line of more bytes than many pieces, between small ones."""
    documents = ["before", "x" * 9_000_000 + "é", "after"]
    path = tmp_path / "a.jsonl"
    path.write_bytes(WRITERS[".jsonl"](documents))

    assert documents_of(source_of(path)) == documents


def test_marks_and_ends_of_line_of_other_systems_are_no_text(tmp_path):
    """A byte-order mark before, carriage returns between; blank lines are passed over."""
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "two"}\r\n')
    (tmp_path / "b.csv").write_bytes(b"\xef\xbb\xbftext,id\r\none,1\r\n\r\ntwo,2\r\n")
    (tmp_path / "c.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\r\n")

    for name in ("a.jsonl", "b.csv", "c.txt"):
        assert documents_of(source_of(tmp_path / name, text_documents="line")) == ["one", "two"], name


def test_packed_files_may_have_several_members(tmp_path):
    """As `cat a.gz b.gz` makes them."""
    for packing in (".gz", ".zst"):
        pack = PACKERS[packing]
        path = tmp_path / f"a.jsonl{packing}"
        path.write_bytes(pack(WRITERS[".jsonl"](["one"])) + pack(WRITERS[".jsonl"](["two"])))

        assert documents_of(source_of(path)) == ["one", "two"], packing


@pytest.mark.parametrize("kind", ["large_string", "string_view", "dictionary", "large_binary"])
def test_text_may_be_stored_in_any_of_parquets_ways(tmp_path, kind):
    """Whatever the tool that wrote it prefers."""
    import pyarrow as pa
    from pyarrow import parquet

    types = {
        "large_string": pa.large_string(),
        "string_view": pa.string_view(),
        "dictionary": pa.dictionary(pa.int32(), pa.string()),
        "large_binary": pa.large_binary(),
    }
    values = pa.array(["one", "two", None, "one"])
    column = values.dictionary_encode() if kind == "dictionary" else values.cast(types[kind])
    parquet.write_table(pa.table({"text": column}), tmp_path / "a.parquet")

    assert documents_of(source_of(tmp_path / "a.parquet")) == ["one", "two", "one"]
