"""Files as users name them, standard input, and the text inside the package."""

from __future__ import annotations

import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automodel_cli.engine.prep.corpus import input_file
from automodel_cli.engine.prep.corpus.files import open_stdin
from automodel_cli.engine.prep.corpus.open_source import open_source
from automodel_cli.engine.prep.corpus.text_reader import cut_at_blank_lines
from automodel_cli.engine.prep.package_data import SHAKESPEARE, read_asset
from automodel_cli.engine.prep.prep_options import SourceOptions
from automodel_cli.engine.prep.presets import PRESETS
from automodel_cli.errors import DataError, UsageError
from tests.engine.prep.corpus.conftest import documents_of, source_of, tiny_pieces


def test_the_embedded_text_is_one_document_per_scene():
    """149 scenes, each with a play's title first; joined they are the whole file."""
    scenes = documents_of(source_of("shakespeare"))

    assert len(scenes) == 149
    assert "".join(scenes) == read_asset(SHAKESPEARE)
    assert len({scene.split("\n")[0] for scene in scenes}) == 8
    with tiny_pieces():
        batches = list(source_of("shakespeare").batches())
        assert documents_of(source_of("shakespeare"), batches[10].cursor) == scenes[44:]


def test_files_of_all_kinds_are_read_together_in_the_order_they_are_named(tmp_path):
    """A pattern gives its files by name; one named twice is read once."""
    for name, content in {
        "c.jsonl": '{"text": "c"}\n',
        "b.csv": "text\nb\n",
        "a1.txt": "a1\n\n1",
        "a2.txt": "a2",
    }.items():
        (tmp_path / name).write_text(content)

    source = source_of("c.jsonl", "a*.txt", "*.csv", "./a1.txt")

    assert documents_of(source) == ["c", "a1\n\n1", "a2", "b"]
    assert [batch.place for batch in source.batches()] == ["b.csv, file 4 of 4"]
    assert source.description.names == ("c.jsonl", "a1.txt", "a2.txt", "b.csv")


def test_a_single_text_file_is_cut_at_blank_lines(tmp_path):
    """Otherwise no document of it could be held out for validation."""
    text = "".join(f"paragraph {n}: {'x' * 500}\n\n" for n in range(100))
    (tmp_path / "book.txt").write_text(text)

    pieces = documents_of(source_of(tmp_path / "book.txt"))

    assert len(pieces) > 4
    assert "".join(pieces) == text
    assert all(piece.startswith("paragraph") for piece in pieces)
    assert documents_of(source_of(tmp_path / "book.txt", text_documents="file")) == [text]


@given(st.text("ab\n ", max_size=80).map(str.encode), st.integers(1, 20))
def test_cutting_loses_nothing(text, min_bytes):
    """The pieces joined are the text; all but the last are long enough, and their offsets are right."""
    pieces = list(cut_at_blank_lines(text, min_bytes))

    assert b"".join(piece for _, piece in pieces) == text
    assert all(text[offset:].startswith(piece) for offset, piece in pieces)
    assert all(len(piece) >= min_bytes for _, piece in pieces[:-1])


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (
            ["shakespear"],
            r"(?s)neither a preset nor a file.*did you mean `shakespeare`\?.*fineweb.*\.parquet.*--dataset",
        ),
        (["no/such/*.txt"], "neither a preset nor a file"),
        (["a.pdf"], r"a\.pdf is no file that can be read\n.*\.parquet, \.jsonl, \.csv or \.txt"),
        (["."], r"\. is a directory\n.*pattern: '.*\*\.parquet'"),
        (["shakespeare", "a.pdf"], "'shakespeare' is a source of its own"),
        ([], "there is no source"),
    ],
)
def test_names_that_stand_for_nothing_are_refused_with_what_there_is(tmp_path, names, complaint):
    """A PDF read as text would be tokens all the same."""
    (tmp_path / "a.pdf").touch()

    with pytest.raises(UsageError, match=complaint):
        source_of(*names)


def test_options_of_the_hub_are_refused_for_files(tmp_path):
    """They would do nothing, silently."""
    (tmp_path / "a.txt").write_text("a")

    with pytest.raises(UsageError, match="--set-name is for data sets on the hub"):
        source_of(tmp_path / "a.txt", set_name="x")
    with pytest.raises(UsageError, match="there are two sources: --dataset org/x and shakespeare"):
        source_of("shakespeare", dataset="org/x")


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.hub])
def test_a_hub_preset_without_its_package_says_what_to_install(monkeypatch, name):
    """And what works without."""
    monkeypatch.setitem(sys.modules, "datasets", None)

    with pytest.raises(UsageError, match=r"(?s)`datasets`.*not installed.*amcli\[hub\].*shakespeare"):
        source_of(name)


@pytest.mark.parametrize("whole_bytes", [1 << 26, 8])
def test_the_fingerprint_follows_names_sizes_and_contents(tmp_path, monkeypatch, whole_bytes):
    """Changed text is another source; the same text read again is the same. Large files are sampled."""
    monkeypatch.setattr(input_file, "_WHOLE_BYTES", whole_bytes)
    (tmp_path / "a.txt").write_text("one" * 50_000)
    (tmp_path / "b.txt").write_text("two" * 50_000)
    first = source_of(tmp_path / "*.txt").record

    again = source_of(tmp_path / "*.txt").record
    (tmp_path / "b.txt").write_text("two" * 49_999 + "2wo")
    changed = source_of(tmp_path / "*.txt").record

    assert again == first
    assert changed.sha256 != first.sha256


@pytest.mark.parametrize(
    "cursor", ["", "7", "{}", '{"file": 9, "at": null, "documents": 0}', '{"file": 0, "at": ["x"]}']
)
def test_what_is_no_cursor_is_refused(cursor):
    """Reading from a wrong place would lose documents silently."""
    with pytest.raises(DataError, match="cursor"):
        documents_of(source_of("shakespeare"), cursor)


class TestStandardInput:
    """It can be read once, from the beginning."""

    @pytest.mark.parametrize(
        ("content", "options", "documents"),
        [
            (b'\n {"text": "one"}\n{"text": "two"}\n', {}, ["one", "two"]),
            (b"plain\n\ntext\n", {}, ["plain\n\ntext\n"]),
            (b"one\ntwo\n", {"text_documents": "line"}, ["one", "two"]),
            (b'{"not": "json lines"}', {"stdin_format": "text"}, ['{"not": "json lines"}']),
            (b"", {}, []),
        ],
    )
    def test_its_format_is_seen_or_said(self, content, options, documents):
        """A brace begins JSON lines, unless the user says that it is text."""
        source = open_stdin(SourceOptions(**options), "text", io.BytesIO(content))

        assert documents_of(source) == documents

    def test_it_cannot_be_read_from_the_middle_or_in_parts(self):
        """And says so."""
        source = open_stdin(SourceOptions(), "text", io.BytesIO(b"one"))
        (batch,) = source.batches()

        with pytest.raises(DataError, match="cannot be read on"):
            next(iter(source.batches(batch.cursor)))
        with pytest.raises(UsageError, match="cannot be divided"):
            source.partition(0, 2)
        assert not source.description.resumable

    def test_a_dash_stands_for_it(self, monkeypatch):
        """As in other tools."""
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"body": "one"}')))

        source = open_source(SourceOptions(sources=("-",), text_column="body"))

        assert documents_of(source) == ["one"]
