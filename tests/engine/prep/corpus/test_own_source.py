"""Documents from the user's own code: counted, checked and resumed as those of files are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from automodel_cli.engine.prep.estimate import estimate
from automodel_cli.engine.prep.prep_options import OnBadDocument, Partition, PrepOptions, SourceOptions
from automodel_cli.engine.prep.prepare import prepare
from automodel_cli.errors import ConfigError, DataError, UsageError

CODE = '''
import os, signal, time
from pathlib import Path

class Numbers:
    """Documents by number; goes on from a saved place. Ends its process where DIE_AT says so."""

    def __init__(self, size, api_key=None):
        self.size, self.next = size, 0

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]
        with open("starts", "a") as starts:
            starts.write(f"{self.next}\\n")

    def __iter__(self):
        while self.next < self.size:
            if self.next == int(os.environ.get("DIE_AT", -1)):
                while '"splits": {}' in Path("out/progress.json").read_text():
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGKILL)
            self.next += 1
            yield f"document {self.next} " + "word " * (self.next % 17)

def plain(size, bad_at=-1):
    for number in range(size):
        if number == bad_at and os.environ.get("FAIL"):
            raise ValueError("no such page")
        yield {"text": f"document {number} " + "word " * (number % 17)}

def mixed():
    return ["good", None, " ", 3, b"caf\\xc3\\xa9", b"caf\\xe9", {"text": "field"}, {"text": None}, "\\ud800"]

def number():
    return 7
'''


@pytest.fixture(autouse=True)
def own_code():
    Path("own.py").write_text(CODE)


def options(name="plain", size=None, output_dir="out", **more) -> PrepOptions:
    keys = ("text_column", "on_bad_document", "source_args")
    source = {key: more.pop(key) for key in keys if key in more}
    if size is not None:
        source["source_args"] = {"size": size, **source.get("source_args", {})}
    more = {"tokenizer": "bytes", "shard_tokens": 5000, "prefetch": 1, "num_workers": 1, **more}
    return PrepOptions(SourceOptions((f"own.py:{name}",), **source), output_dir=Path(output_dir), **more)


def files_of(directory):
    return {path.name: path.read_bytes() for path in sorted(Path(directory).iterdir())}


def test_a_killed_preparation_goes_on_at_the_saved_place_with_the_same_bytes():
    """The command line from outside: killed in the middle of the source, then the same command once more."""
    command = [sys.executable, "-m", "automodel_cli", "prep", "own.py:Numbers", "--source-args", '{"size": 3000}']
    command += ["--tokenizer", "bytes", "--shard-tokens", "5K", "--prefetch", "1", "--output-dir"]

    killed = subprocess.run([*command, "out"], env={**os.environ, "DIE_AT": "2500"}, capture_output=True)
    resumed = subprocess.run([*command, "out"], capture_output=True, text=True)
    subprocess.run([*command, "whole"], capture_output=True, check=True)

    assert killed.returncode == -signal.SIGKILL
    assert "going on after" in resumed.stderr
    assert files_of("out") == files_of("whole")
    # The documents before were not made again.
    assert 0 < int(Path("starts").read_text()) <= 2500


def test_an_iterable_without_a_state_is_read_again_up_to_its_place(monkeypatch):
    """Same bytes; its exception keeps its type and says at which document it was raised."""
    monkeypatch.setenv("FAIL", "1")
    with pytest.raises(ValueError, match="no such page") as failed:
        prepare(options(size=3000, source_args={"bad_at": 2222}))
    monkeypatch.delenv("FAIL")

    resumed = prepare(options(size=3000, source_args={"bad_at": 2222}))
    prepare(options(size=3000, source_args={"bad_at": 2222}, output_dir="whole"))

    assert "while reading document 2,223 of own.py:plain" in failed.value.__notes__
    assert resumed.resumed_tokens > 0
    assert files_of("out") == files_of("whole")


def test_the_manifest_names_code_arguments_and_hash_but_no_secret():
    """So other code or other arguments are refused, and another key is not."""
    prepare(options("Numbers", size=100, source_args={"api_key": "hf_secret"}))

    written = json.loads(Path("out/manifest.json").read_text())["source"]
    assert written["name"] == 'own.py:Numbers {"api_key": "***", "size": 100}'
    assert len(written["sha256"]) == 64
    assert prepare(options("Numbers", size=100, source_args={"api_key": "hf_other"})).reused
    with pytest.raises(DataError, match="source is"):
        prepare(options("Numbers", size=99, source_args={"api_key": "hf_secret"}))
    Path("own.py").write_text(CODE + "\n# changed\n")
    with pytest.raises(DataError, match="source sha256 is"):
        prepare(options("Numbers", size=100, source_args={"api_key": "hf_secret"}))


def test_texts_bytes_and_mappings_are_documents_and_others_are_counted():
    """As the bad documents of a file are, with the number of the first."""
    result = prepare(options("mixed", val_tokens=0))

    reading = result.manifest.reading
    assert result.manifest.splits["train"].num_documents == 3
    assert reading.skipped == {"empty": 1, "invalid_utf8": 1, "lone_surrogate": 1, "not_text": 1, "null": 2}
    assert reading.first_skipped["not_text"] == {"where": "own.py:mixed:4", "found": "int"}
    with pytest.raises(DataError, match="the document is bad: it is null") as refused:
        prepare(options("mixed", on_bad_document=OnBadDocument.FAIL, output_dir="strict"))
    assert refused.value.where == "own.py:mixed:2"


def test_a_dry_run_reads_the_first_documents_and_writes_nothing():
    """The size of the source is not known, but that of the budget is."""
    found = estimate(options(size=3000, max_tokens=10_000))

    assert (found.kind, found.names, found.num_tokens) == ("code", ("own.py:plain",), 10_000)
    assert not Path("out").exists()


def test_parts_hold_every_document_once():
    """Divided by pieces, as a single text file is."""
    parts = [
        prepare(options(size=1500, partition=Partition(part, 3), val_tokens=0)).manifest.splits["train"].num_documents
        for part in range(3)
    ]

    assert sum(parts) == 1500
    assert min(parts) > 0


@pytest.mark.parametrize(
    ("name", "source", "error", "message"),
    [
        ("missing", {}, ConfigError, "missing"),
        ("number", {}, DataError, "gives an object of type int, not an iterable of documents"),
        ("plain", {"size": 3, "colour": 1}, ConfigError, "colour"),
        ("plain", {}, ConfigError, "size"),
    ],
)
def test_code_that_does_not_fit_is_refused_before_anything_is_made(name, source, error, message):
    """With the rule, as sections with `_target_` are."""
    with pytest.raises(error, match=message):
        prepare(options(name, source_args=source))


def test_a_column_that_no_mapping_has_is_an_error():
    """It names those that there are."""
    with pytest.raises(DataError, match="there is no column 'body'; the columns are text"):
        prepare(options(size=3, text_column="body"))


def test_arguments_need_code():
    """And code stands alone."""
    Path("a.txt").write_text("text")

    with pytest.raises(UsageError, match="--source-args is for a source of your own code"):
        prepare(PrepOptions(SourceOptions(("a.txt",), source_args={})))
    with pytest.raises(UsageError, match="a source of its own"):
        prepare(PrepOptions(SourceOptions(("own.py:plain", "a.txt"))))
