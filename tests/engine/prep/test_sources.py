"""Where documents come from, and where one ends."""

from __future__ import annotations

import json
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automodel_cli.engine.prep.package_data import SHAKESPEARE, read_asset
from automodel_cli.engine.prep.presets import PRESETS
from automodel_cli.engine.prep.sources import cut_at_blank_lines, join_rows, open_source
from automodel_cli.errors import DataError, UsageError


def texts(source, text_column="text"):
    return [document.text for document in open_source(str(source), text_column).documents()]


def test_the_embedded_text_is_one_document_per_scene():
    """149 scenes, each with a play's title first; joined they are the whole file."""
    scenes = texts("shakespeare")

    assert len(scenes) == 149
    assert "".join(scenes) == read_asset(SHAKESPEARE)
    assert {scene.split("\n")[0] for scene in scenes} == {
        "A MIDSUMMER NIGHT'S DREAM",
        "HAMLET",
        "JULIUS CAESAR",
        "KING LEAR",
        "MACBETH",
        "OTHELLO",
        "ROMEO AND JULIET",
        "THE TEMPEST",
    }


def test_several_text_files_are_one_document_each_in_order_of_their_names(tmp_path):
    """A file is a document, blank lines or not."""
    (tmp_path / "b.txt").write_text("second\n\ntext")
    (tmp_path / "a.txt").write_text("first", encoding="utf-8")

    assert texts(tmp_path / "*.txt") == ["first", "second\n\ntext"]


def test_a_single_text_file_is_cut_at_blank_lines(tmp_path):
    """Otherwise no document of it could be held out for validation."""
    text = "".join(f"paragraph {n}: {'x' * 500}\n\n" for n in range(100))
    (tmp_path / "book.txt").write_text(text)

    pieces = texts(tmp_path / "book.txt")

    assert len(pieces) > 4
    assert "".join(pieces) == text
    assert all(piece.startswith("paragraph") for piece in pieces)


@given(st.text("ab\n ", max_size=80), st.integers(1, 20))
def test_cutting_loses_nothing(text, min_chars):
    """The pieces joined are the text; all but the last are long enough and end with a blank line."""
    pieces = list(cut_at_blank_lines(text, min_chars))

    assert "".join(pieces) == text
    assert all(len(piece) >= min_chars and re.search(r"\n\s*\n\Z", piece) for piece in pieces[:-1])


def test_json_lines_are_one_document_each(tmp_path):
    """The named field is the text; blank lines are skipped; escapes are resolved."""
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"body": "é\n1", "id": 7}) + "\n\n" + json.dumps({"body": "2"}))

    assert texts(path, "body") == ["é\n1", "2"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"text": ', r"a\.jsonl:2: the line is not JSON"),
        ('{"body": "x"}', r"a\.jsonl:2: the line has no text in 'text'; it has \['body'\]"),
        ('{"text": 5}', r"a\.jsonl:2: the line has no text"),
        ('["text"]', r"a\.jsonl:2: .*it is no object"),
    ],
)
def test_a_bad_json_line_is_named_by_its_number(tmp_path, line, complaint):
    """The user can go to the line."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' + line)

    with pytest.raises(DataError, match=complaint):
        texts(path)


def test_a_text_that_is_not_utf8_is_refused_with_its_place(tmp_path):
    """Guessing an encoding would train on garbage."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9")

    with pytest.raises(DataError, match="byte 3 is not UTF-8"):
        texts(path)


@pytest.mark.parametrize("source", ["shakespear", "no/such/*.txt"])
def test_an_unknown_source_lists_what_there_is(source):
    """Presets, and the kinds of files."""
    with pytest.raises(UsageError, match=r"(?s)neither a preset nor a file.*shakespeare, fineweb.*\.txt or \.jsonl"):
        open_source(source, "text")


def test_a_file_of_another_kind_is_refused(tmp_path):
    """A PDF read as text would be tokens all the same."""
    (tmp_path / "a.pdf").touch()

    with pytest.raises(UsageError, match=r"a\.pdf is not a \.txt or \.jsonl file"):
        open_source(str(tmp_path / "a.pdf"), "text")


def test_the_hash_of_files_follows_names_and_contents(tmp_path):
    """Changed text is another source; the same text read again is the same."""
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    pattern = str(tmp_path / "*.txt")
    first = open_source(pattern, "text").record()

    again = open_source(pattern, "text").record()
    (tmp_path / "b.txt").write_text("2wo")
    changed = open_source(pattern, "text").record()

    assert again == first
    assert changed.sha256 != first.sha256


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.hub])
def test_a_hub_preset_without_its_package_says_what_to_install(monkeypatch, name):
    """And what works without."""
    monkeypatch.setitem(sys.modules, "datasets", None)

    with pytest.raises(UsageError, match=r"(?s)`datasets`.*not installed.*amcli\[hub\].*shakespeare"):
        next(open_source(name, "text").documents())


class FakeHub:
    """Stands in for the package `datasets`, which the tests do not need: rows, or a failure."""

    def __init__(self, rows):
        self.rows, self.asked = rows, None

    def load_dataset(self, path, config, *, split, streaming):
        self.asked = (path, config, split, streaming)
        if isinstance(self.rows, Exception):
            raise self.rows
        return iter(self.rows)


def test_hub_rows_are_streamed_from_the_training_split(monkeypatch):
    """Nothing is downloaded as a whole."""
    hub = FakeHub([{"text": "a"}, {"text": "b"}])
    monkeypatch.setitem(sys.modules, "datasets", hub)

    assert texts("fineweb") == ["a", "b"]
    assert hub.asked == ("HuggingFaceFW/fineweb", "sample-10BT", "train", True)


def test_rows_of_wikitext_are_joined_into_articles(monkeypatch):
    """Its rows are lines; a title line, not a section's, begins a document."""
    rows = ["", " = Ant = \n", " text\n", " = = Life = = \n", " more\n", " = Bee = \n", " text\n"]
    monkeypatch.setitem(sys.modules, "datasets", FakeHub([{"text": row} for row in rows]))

    assert texts("wikitext")[-2:] == [" = Ant = \n text\n = = Life = = \n more\n", " = Bee = \n text\n"]


def test_a_failure_of_the_hub_is_a_data_error(monkeypatch):
    """With the client's own reason."""
    monkeypatch.setitem(sys.modules, "datasets", FakeHub(ConnectionError("no route to host")))

    with pytest.raises(DataError, match="no route to host"):
        texts("c4")


def test_a_missing_column_lists_those_there_are(monkeypatch):
    """So that --text-column can be set."""
    monkeypatch.setitem(sys.modules, "datasets", FakeHub([{"content": "a", "url": "b"}]))

    with pytest.raises(DataError, match=r"only \['content', 'url'\]"):
        texts("c4")
    assert texts("c4", "content") == ["a"]


@given(st.lists(st.sampled_from(["T", "x", "yy", ""]), max_size=12))
def test_joining_rows_loses_nothing(rows):
    """Every title begins a document; only the first document may begin without one."""
    joined = list(join_rows(rows, "T"))

    assert "".join(joined) == "".join(rows)
    assert all(text.startswith("T") for text in joined[1:])
