"""What is said of documents that were left out comes from what was counted, and the commands in it run."""

from __future__ import annotations

import bz2
import gzip
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from automodel_cli.engine.prep.estimate import estimate
from automodel_cli.engine.prep.prep_options import Partition, PrepOptions, SourceOptions, TextDocuments
from automodel_cli.engine.prep.prepare import prepare
from automodel_cli.errors import DataError

ROWS = [{"text": f"hello wörld {number}"} for number in range(30)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
TEXT = "café crème\n" * 40
# File, content, and what the message must hold.
UNREADABLE = {
    "array": ("a.json", json.dumps(ROWS), "a JSON array, not JSON lines"),
    "pretty array": ("a.jsonl", json.dumps(ROWS, indent=1), "a JSON array, not JSON lines"),
    "packed array": ("a.json.gz", gzip.compress(json.dumps(ROWS).encode()), "a JSON array, not JSON lines"),
    "pretty objects": ("a.json", "\n".join(json.dumps(row, indent=1) for row in ROWS), "pretty-printed JSON"),
    "Latin-1": ("caf 1.txt", TEXT.encode("latin-1"), "Latin-1 (ISO-8859-1): byte 0xE9 at offset 3"),
    "Windows": ("it's.txt", b"it\x92s \x805 " * 30, "WINDOWS-1252: byte 0x92 at offset 2"),
    "UTF-16": ("a.txt", TEXT.encode("utf-16"), "the whole file is UTF-16"),
    "UTF-16 lines": ("a.jsonl", LINES.encode("utf-16"), "the whole file is UTF-16"),
    "UTF-16 without a mark": ("a.jsonl", LINES.encode("utf-16-be"), "the whole file is UTF-16BE"),
    "UTF-16 of Russian": ("a.txt", ("Привет, мир. " * 40).encode("utf-16-le"), "the whole file is UTF-16LE"),
    "UTF-16 table": ("a.csv", ("text,id\n" + "hello,1\n" * 30).encode("utf-16"), "the whole file is UTF-16"),
    "UTF-32": ("a.txt", TEXT.encode("utf-32"), "the whole file is UTF-32"),
    "packed UTF-16": ("a.jsonl.bz2", bz2.compress(LINES.encode("utf-16")), "the whole file is UTF-16"),
    "broken": ("a.txt", TEXT.encode() + b"\xff\n", "UTF-8 with broken characters: byte 0xFF"),
}


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def options(source: Path | str, directory: Path, **settings) -> PrepOptions:
    reading = SourceOptions(sources=(str(source),), **settings)
    return PrepOptions(reading, tokenizer="bytes", output_dir=directory, val_tokens=0)


def refused(wanted: PrepOptions) -> DataError:
    with pytest.raises(DataError) as caught:
        prepare(wanted)
    return caught.value


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_file_that_cannot_be_read_is_named_with_its_kind_and_a_command_that_mends_it(tmp_path, kind):
    """Count, reason, place and kind; the command, pasted into a shell, makes a file that is prepared."""
    name, content, found = UNREADABLE[kind]
    path = write(tmp_path / name, content)

    error = refused(options(path, tmp_path / "out"))

    assert "left out (1 " in error.message
    assert found in error.message
    assert error.where == f"{path}:1"
    assert "holds no text" not in str(error)
    command = re.search("`(.+)`", str(error.help))[1]
    if shutil.which(re.findall(r"(?:^|\| )(\w+)", command)[-1]):
        subprocess.run(["bash", "-c", command], check=True)
        (made,) = set(tmp_path.glob("*.*")) - {path, tmp_path / "out"}
        assert prepare(options(made, tmp_path / "out")).manifest.reading.skipped == {}


@pytest.mark.parametrize("content", [b"%PDF-1.7\n", b"PK\x03\x04", b"\x1f\x8b\x08", b"SQLite format 3\x00"])
def test_what_is_no_text_at_all_is_refused_as_what_it_is(tmp_path, content):
    """Even where much of it would pass for text."""
    path = write(tmp_path / "a.txt", content + b"words and words\n\n" * 3000)

    error = refused(options(path, tmp_path / "out", text_documents=TextDocuments.LINE))

    assert "the whole file is " in error.message
    assert error.help


@pytest.mark.parametrize("text", ["a\0b c\0" * 50, "naïve \0 text\n" * 50, "[INFO] begun\n[INFO] done\n", "日本\n" * 9])
def test_unusual_text_is_still_text(tmp_path, text):
    """Zero bytes, brackets and other scripts make no text another kind of file."""
    path = write(tmp_path / "a.txt", text)

    assert prepare(options(path, tmp_path / "out")).manifest.reading.skipped == {}


@pytest.mark.parametrize(
    "lines", ["[1, 2]\n[3]\n", '["a"]\n{"text": "b"}\n', '[{"text": \n{"text": "b"}\n', "[INFO] a\n"]
)
def test_bad_lines_at_the_beginning_do_not_make_an_array(tmp_path, lines):
    """They are counted line by line, and the lines behind them are read."""
    path = write(tmp_path / "a.jsonl", lines + '{"text": "c"}\n')

    reading = prepare(options(path, tmp_path / "out")).manifest.reading

    assert reading.skipped.keys() <= {"not_an_object", "invalid_json"}
    assert reading.num_documents == (lines + "c").count('"b"') + 1


def test_documents_beyond_the_limit_are_counted_and_the_option_is_named(tmp_path):
    """With the limit, the size of the first one, and for text what else could be a document."""
    lines = write(tmp_path / "a.jsonl", json.dumps({"text": "x" * 200}) + "\n" + json.dumps({"text": "y" * 300}))
    text = write(tmp_path / "a.txt", "word " * 100)

    of_lines = refused(options(lines, tmp_path / "out", max_document_bytes=100))
    of_text = refused(options(text, tmp_path / "out", max_document_bytes=100))
    of_file = refused(options(text, tmp_path / "out", max_document_bytes=100, text_documents=TextDocuments.FILE))

    assert "all 2 documents were left out: 2 too_large" in of_lines.message
    assert "(200 bytes)" in of_lines.message
    assert of_lines.help == "raise --max-document-bytes, which is 100"
    for error in (of_text, of_file):
        assert str(error.help).startswith("--text-documents line makes each line a document")


def test_several_reasons_each_have_their_first_place(tmp_path):
    """And the counts add up to all documents."""
    path = write(tmp_path / "a.jsonl", b'{"text": null}\n{"text": "caf\xe9"}\n{"text": null}\nno JSON\n')

    error = refused(options(path, tmp_path / "out"))

    assert error.message == "all 4 documents were left out: 1 invalid_json, 1 invalid_utf8, 2 null"
    assert [problem.where for problem in error.problems] == [f"{path}:4", f"{path}:2", f"{path}:1"]


@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", ""), ("a.jsonl", "\n \n"), ("a.csv", "text,id\n"), ("b.csv", "")]
)
def test_an_empty_file_holds_no_text(tmp_path, name, content):
    """There is nothing to be counted, and that is what is said."""
    error = refused(options(write(tmp_path / name, content), tmp_path / "out"))

    assert (error.message, error.where) == ("the source holds no text", str(tmp_path / name))


def test_a_bad_file_among_good_ones_is_counted_and_the_rest_is_prepared(tmp_path):
    """The manifest, the notes and a dry run have the first place of each reason; so has a second run."""
    for name, content in {"a.jsonl": LINES.encode("utf-16"), "b.jsonl": LINES, "c.jsonl": json.dumps(ROWS)}.items():
        write(tmp_path / name, content)
    wanted = options(tmp_path / "*.jsonl", tmp_path / "out")

    found = estimate(wanted)
    result, again = prepare(wanted), prepare(wanted)

    assert result.manifest.reading.skipped == found.skipped == {"invalid_utf8": 1, "not_an_object": 1}
    assert (
        result.manifest.reading.first_skipped
        == found.first_skipped
        == {
            "invalid_utf8": {"where": f"{tmp_path}/a.jsonl:1", "found": "the whole file is UTF-16"},
            "not_an_object": {"where": f"{tmp_path}/c.jsonl:1", "found": "a JSON array, not JSON lines"},
        }
    )
    assert result.manifest.reading.num_documents == len(ROWS)
    assert again.reused
    assert again.notes == result.notes
    assert [("iconv" in note, "jq" in note) for note in result.notes] == [(True, False), (False, True)]
    assert found.notes == result.notes


def test_the_first_places_survive_a_shuffle(tmp_path):
    """Blocks of documents do not hide which was the first."""
    path = write(tmp_path / "a.jsonl", '{"text": "a"}\n' * 3 + '{"text": null}\n' * 2 + '{"text": "b"}\n' * 4)

    reading = prepare(replace(options(path, tmp_path / "out"), shuffle_buffer=2)).manifest.reading

    assert reading.first_skipped == {"null": {"where": f"{path}:4", "found": ""}}


@pytest.mark.parametrize("index", [0, 1])
def test_every_part_of_an_unreadable_source_says_why(tmp_path, index):
    """Also the part to which nothing of it fell."""
    path = write(tmp_path / "a.jsonl", LINES.encode("utf-16"))
    wanted = replace(options(path, tmp_path / "out"), partition=Partition(index, 2))

    error = refused(wanted)
    with pytest.raises(DataError) as of_dry_run:
        estimate(wanted)

    assert "the whole file is UTF-16" in error.message
    assert str(of_dry_run.value) == str(error)


def test_a_part_that_is_short_says_both_numbers(tmp_path):
    """Its own share and the whole budget: no other part makes up for it."""
    path = write(tmp_path / "a.jsonl", LINES)

    result = prepare(replace(options(path, tmp_path / "out"), partition=Partition(0, 2), max_tokens=10_001))

    (note,) = result.notes
    tokens = result.manifest.splits["train"].num_tokens
    assert f"part 0/2 ended at {tokens:,} of 5,001 training tokens, its share of --max-tokens 10,001" in note


def test_texts_of_parquet_are_not_to_be_converted_by_iconv(tmp_path):
    """It would break the file."""
    values = pa.array(["café".encode("latin-1")] * 2, pa.binary())
    parquet.write_table(pa.table({"text": values}), tmp_path / "a.parquet")

    error = refused(options(tmp_path / "a.parquet", tmp_path / "out"))

    assert "all 2 documents were left out: 2 invalid_utf8" in error.message
    assert "iconv" not in str(error.help)


def test_names_that_are_not_utf8_are_read_and_printed_for_a_shell(tmp_path):
    """In the manifest they are escaped, and a second run knows them again."""
    name = b"caf\xe9 '1.jsonl".decode("utf-8", "surrogateescape")
    wanted = options(write(tmp_path / name, LINES), tmp_path / "out")
    parquet.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "a.parquet")
    (tmp_path / "a.parquet").rename(tmp_path / f"{name}.parquet")
    broken = write(tmp_path / f"{name}.txt", "é ".encode("latin-1") + b"abc " * 9)

    result = prepare(wanted)

    assert prepare(wanted).manifest == result.manifest
    assert prepare(options(tmp_path / f"{name}.parquet", tmp_path / "p")).manifest.num_documents == 2
    command = re.search("`(.+)`", str(refused(options(broken, tmp_path / "b")).help))[1]
    assert command.isprintable()
    subprocess.run(["bash", "-c", command], check=True)
    assert prepare(options(tmp_path / f"{name}.utf8.txt", tmp_path / "u")).manifest.num_documents == 1
