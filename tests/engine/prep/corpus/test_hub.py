"""Streaming from the hub, against a hub on this machine: every connection may break, every process may end.

Each reading is a process of its own, as it is when `amcli prep` is started again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.prep.corpus.conftest import PACKERS, as_json_lines, as_parquet
from tests.engine.prep.corpus.fake_hub import FakeHub, Fault, serving

ROOT = Path(__file__).parents[4]
DOCUMENTS = [f"document {number} {'é' * (number % 50)}" for number in range(3000)]
README = b"""---
configs:
- {config_name: rows, data_files: [{split: train, path: rows/*}]}
- {config_name: lines, data_files: [{split: train, path: lines/*}]}
---
"""
# Reads what each of the requests asks for: of the batches after `start`, `limit` at most.
PROBE = """
import json, sys
from automodel_cli.engine.prep.corpus import corpus, hub_file
from automodel_cli.engine.prep.corpus.open_source import open_source
from automodel_cli.engine.prep.prep_options import SourceOptions
from automodel_cli.errors import AmcliError
corpus._BATCH_DOCUMENTS, hub_file._FIRST_WAIT_S = 500, 0.01
answers = []
for options in json.loads(sys.argv[1]):
    waits = []
    start, limit = options.pop("start", None), options.pop("limit", 1000)
    try:
        source = open_source(SourceOptions(**options, on_wait=waits.append))
        read = [batch for _, batch in zip(range(limit), source.batches(start))]
        answers.append({
            "texts": [text for batch in read for text in batch.texts.to_pylist()],
            "cursor": read[-1].cursor if read else start,
            "revision": source.record.revision, "name": source.record.name, "waits": waits,
        })
    except AmcliError as error:
        answers.append({"error": str(error), "waits": waits})
print(json.dumps(answers))
"""


def read(hub: FakeHub, home: Path, *requests: dict) -> list[dict]:
    """Read in a new process; one answer for each request."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROBE, json.dumps(requests)]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def data_set() -> dict[str, bytes]:
    half = len(DOCUMENTS) // 2
    return {
        "README.md": README,
        "rows/0.parquet": as_parquet(DOCUMENTS[:half]),
        "rows/1.parquet": as_parquet(DOCUMENTS[half:]),
        "lines/0.jsonl": as_json_lines(DOCUMENTS[:half]),
        "lines/1.json.gz": PACKERS[".gz"](as_json_lines(DOCUMENTS[half:])),
    }


WIKITEXT = {
    "README.md": b"---\nconfigs: [{config_name: wikitext-103-raw-v1, data_files: [{split: train, path: w/*}]}]\n---\n",
    "w/0.parquet": as_parquet(["", " = Ant = \n", " text\n"]),
    "w/1.parquet": as_parquet([" = = Life = = \n", " more\n", " = Bee = \n", " text\n"]),
}
# What is asked for, and what the error says.
WRONG = {
    "there is no data set 'org/nothing'": {"dataset": "org/nothing"},
    "there is no data set 'a b'": {"dataset": "a b"},
    "no revision 'mian'; there are main": {"dataset": "org/web", "revision": "mian"},
    "needs the name of a configuration; there are rows, lines": {"dataset": "org/web"},
    "no configuration 'row'; there are rows, lines": {"dataset": "org/web", "set_name": "row"},
    "no split 'tset' in 'default'; there are train, test": {"dataset": "org/plain", "split": "tset"},
    "no column 'txt'; the columns are id, text": {"dataset": "org/web", "set_name": "rows", "text_column": "txt"},
    "no column 'body'; the columns are meta, text": {"dataset": "org/plain", "text_column": "body"},
}


def test_a_stream_goes_on_at_the_same_document_after_every_restart(tmp_path):
    """Three processes, while connections drop in the middle and the server answers 429, 503 and 500."""
    kinds = [Fault(drop_after=1000), Fault(status=429, retry_after="0"), Fault(status=503), Fault(status=500)]
    faults = iter(kinds * 100)
    with serving(FakeHub()) as hub:
        files = data_set().keys() - {"README.md"}
        commit = hub.commit("org/web", data_set())
        # Every second part of a file comes broken or not at all.
        hub.faults = lambda path, number: next(faults) if number % 2 and path in files else None
        texts: dict[str, list[str]] = {"rows": [], "lines": []}
        cursors: dict[str, str | None] = dict.fromkeys(texts)
        waits: list[str] = []

        for limit in (1, 2, 1000):
            requests = [
                {"dataset": "org/web", "set_name": name, "start": cursors[name], "limit": limit} for name in texts
            ]
            for name, answer in zip(texts, read(hub, tmp_path, *requests), strict=True):
                texts[name] += answer["texts"]
                cursors[name] = answer["cursor"]
                waits += answer["waits"]
                assert (answer["revision"], answer["name"]) == (commit, f"org/web {name} train")

    assert texts["rows"] == texts["lines"] == DOCUMENTS
    assert all(any(sign in line for line in waits) for sign in ("429", "503", "500", "body"))


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> dict[str, dict]:
    """What one process is told that asks for many things."""
    requests = {
        **WRONG,
        "part": {"dataset": "org/many", "limit": 1},
        "newest": {"dataset": "org/moved"},
        "pinned": {"dataset": "org/moved"},
        "test": {"dataset": "org/plain", "split": "test"},
        "text": {"dataset": "org/text"},
        "wikitext": {"sources": ["wikitext"]},
        "away": {"dataset": "org/away", "retry_seconds": 0.1},
        "broken": {"dataset": "org/broken", "retry_seconds": 0.1},
    }
    with serving(FakeHub()) as hub:
        hub.commit("org/web", data_set())
        hub.commit("org/plain", {"train.jsonl": as_json_lines(["a"]), "test.jsonl": as_json_lines(["b"])})
        hub.commit("org/text", {"train.txt": b"one\ntwo\n"})
        hub.commit("org/many", {f"{number}.parquet": data_set()["rows/0.parquet"] for number in range(20)})
        hub.commit("org/broken", {"broken.jsonl": as_json_lines(DOCUMENTS)})
        hub.commit("Salesforce/wikitext", WIKITEXT)
        requests["pinned"]["pinned_revision"] = hub.commit("org/moved", {"train.jsonl": as_json_lines(["old"])})
        hub.commit("org/moved", {"train.jsonl": as_json_lines(["new"])})
        hub.faults = lambda path, number: {
            "api org/away": Fault(status=503),
            "broken.jsonl": Fault(drop_after=10),
        }.get(path)
        home = tmp_path_factory.mktemp("hub")
        answers = dict(zip(requests, read(hub, home, *requests.values()), strict=True))
        return {
            **answers,
            "files": {"read": {line.split("/")[-1] for line in hub.requests if "/org/many/" in line}},
        }


@pytest.mark.parametrize("expected", WRONG)
def test_what_does_not_exist_is_an_error_at_once_with_what_does(asked, expected):
    """Data set, revision, configuration, split and column; nothing is tried twice."""
    assert expected in asked[expected]["error"]
    assert asked[expected]["waits"] == []


def test_the_nearest_name_is_suggested(asked):
    """With the option that takes it."""
    assert "did you mean `test`? Name it with --split" in asked[list(WRONG)[5]]["error"]


def test_files_that_are_not_needed_are_not_touched(asked):
    """One batch of twenty files comes from the first."""
    assert len(asked["part"]["texts"]) >= 500
    assert {name for name in asked["files"]["read"] if name.endswith(".parquet")} == {"0.parquet"}


def test_a_pinned_revision_is_read_after_the_branch_has_moved(asked):
    """So a preparation that goes on next month has the bytes of the one that began."""
    assert (asked["pinned"]["texts"], asked["newest"]["texts"]) == (["old"], ["new"])
    assert asked["pinned"]["revision"] != asked["newest"]["revision"]


def test_another_split_can_be_named(asked):
    """A split is what the data set calls so."""
    assert asked["test"]["texts"] == ["b"]


def test_a_line_of_text_is_a_row(asked):
    """As `datasets` reads text files."""
    assert asked["text"]["texts"] == ["one", "two"]


def test_rows_of_wikitext_are_joined_into_articles(asked):
    """A title line, not a section's, begins a document, which may go on in the next file."""
    assert asked["wikitext"]["texts"] == [" = Ant = \n text\n = = Life = = \n more\n", " = Bee = \n text\n"]


def test_a_hub_that_stays_away_is_an_error_that_says_how_to_go_on(asked):
    """From the beginning, and in the middle of a file."""
    assert "org/away: no connection for 0.1 s: the server answers 503" in asked["away"]["error"]
    assert "broken.jsonl: no connection for 0.1 s" in asked["broken"]["error"]
    assert "the same command continues" in asked["broken"]["error"]
