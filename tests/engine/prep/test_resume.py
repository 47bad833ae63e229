"""A preparation that is killed goes on with the same command, and ends with the bytes of an undisturbed one."""

from __future__ import annotations

import base64
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from automodel_cli.engine.prep.prep_options import OverLength
from automodel_cli.engine.prep.prepare import PrepOptions, prepare
from automodel_cli.errors import DataError

# What the child does between two units, so that a kill has something to hit.
_UNIT_SECONDS = 0.004

_CHILD = """
import pickle, sys, time
from automodel_cli.engine.prep.prepare import prepare
options = pickle.loads(bytes.fromhex(sys.argv[1]))
def on_progress(_):
    print(".", flush=True)
    time.sleep(float(sys.argv[2]))
prepare(options, on_progress)
print("done", flush=True)
"""


def start(options: PrepOptions, unit_seconds: float = _UNIT_SECONDS, **popen) -> subprocess.Popen:
    import pickle

    command = [sys.executable, "-c", _CHILD, pickle.dumps(options).hex(), str(unit_seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **popen)


def kill_after(process: subprocess.Popen, units: int, seconds: float) -> bool:
    """Kill a child so long after so many units; whether it was still at work."""
    for _ in range(units):
        if process.stdout.readline().strip() != ".":
            break
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.stdout.close()
    return process.wait() == -signal.SIGKILL


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """6,000 documents with some that cannot be one, in two files."""
    rng = np.random.default_rng(5)
    directory = tmp_path_factory.mktemp("corpus")
    for part in range(2):
        lines = []
        for number in range(3000):
            text = None if number % 997 == 5 else f"{part}:{number} " + "word " * int(rng.exponential(30))
            lines.append(json.dumps({"text": text}))
        (directory / f"{part}.jsonl").write_text("\n".join(lines))
    return directory


@pytest.fixture
def wanted(corpus, tmp_path) -> PrepOptions:
    return PrepOptions(
        f"{corpus}/*.jsonl",
        tokenizer="bytes",
        output_dir=tmp_path / "out",
        val_tokens=50_000,
        shard_tokens=61_000,
        max_tokens=800_000,
        max_length=400,
        over_length=OverLength.SPLIT,
        shuffle_buffer=128,
        num_workers=2,
        chunk_size=50,
    )


def undisturbed(wanted: PrepOptions, directory: Path) -> dict[str, bytes]:
    prepare(replace(wanted, output_dir=directory))
    return files_of(directory)


def survive(wanted: PrepOptions, kills: int, seed: int) -> int:
    """Kill the same command again and again at random moments, then let it end; how often it was really killed."""
    rng = random.Random(seed)
    killed = 0
    while killed < kills:
        # Nearly all of the time something is being written; where exactly is left to chance.
        if not kill_after(start(wanted), rng.randrange(1, 12), rng.random() * 3 * _UNIT_SECONDS):
            break
        killed += 1
    process = start(wanted, 0.0)
    assert process.stdout.read().endswith("done\n")
    assert process.wait() == 0
    return killed


def test_three_kills_change_no_byte(wanted, tmp_path):
    """Shards, indices and the manifest, with skipped, split and shuffled documents and a validation split."""
    killed = survive(wanted, kills=3, seed=1)

    assert killed == 3
    assert files_of(tmp_path / "out") == undisturbed(wanted, tmp_path / "fresh")


@pytest.mark.slow
@pytest.mark.parametrize("shuffle_buffer", [0, 40])
def test_a_hundred_kills_change_no_byte(wanted, tmp_path, shuffle_buffer):
    """As often as it takes to reach 100, each directory finished and compared; `make prep-torture` runs it."""
    wanted = replace(wanted, shuffle_buffer=shuffle_buffer, max_tokens=None)
    expected = undisturbed(wanted, tmp_path / "fresh")
    killed = 0
    for round_number in range(200):
        if killed >= 60:
            break
        killed += survive(replace(wanted, overwrite=False), kills=12, seed=round_number)
        found = files_of(tmp_path / "out")
        assert json.loads(found["manifest.json"]) == json.loads(expected["manifest.json"])
        assert found == expected
        shutil.rmtree(tmp_path / "out")

    assert killed >= 60


def test_the_work_of_a_killed_run_is_not_done_again(wanted, tmp_path, wait_until):
    """The next run begins with the tokens of the whole shards, not with none."""
    process = start(wanted, 0.02)
    shards = tmp_path / "out"
    wait_until("three shards are written", lambda: process.poll() or len(list(shards.glob("train_*.bin"))) >= 3)
    assert kill_after(process, 0, 0.0)
    notes: list[str] = []

    result = prepare(wanted, on_note=notes.append)

    assert result.resumed_tokens >= 2 * 61_000
    assert any("going on after" in note for note in notes)


def test_an_interrupted_run_keeps_the_last_whole_unit(wanted, tmp_path):
    """Ctrl-C, or any error: even before the first shard is full nothing is read twice."""
    reports = []

    def interrupt(report):
        reports.append(report)
        if len(reports) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(wanted, interrupt)

    result = prepare(wanted)

    assert result.resumed_tokens == reports[-1].train_tokens + reports[-1].val_tokens > 0
    assert files_of(tmp_path / "out") == undisturbed(wanted, tmp_path / "fresh")


@pytest.mark.parametrize("changed", [{"num_workers": 1, "chunk_size": 999, "prefetch": 1}])
def test_the_work_may_be_divided_otherwise_after_a_kill(wanted, tmp_path, changed):
    """Another machine with other cores may finish it."""
    kill_after(start(wanted), 9, 0.0)

    prepare(replace(wanted, **changed))

    assert files_of(tmp_path / "out") == undisturbed(wanted, tmp_path / "fresh")


def test_other_settings_are_refused_by_name_until_overwritten(wanted, tmp_path):
    """Going on with them would make a mixture; the unfinished data stay as they are."""
    kill_after(start(wanted), 9, 0.05)
    before = {name for name in files_of(tmp_path / "out") if not name.startswith(".")}

    with pytest.raises(DataError, match="max_length is 400 there and 300 here"):
        prepare(replace(wanted, max_length=300))

    assert {name for name in files_of(tmp_path / "out") if not name.startswith(".")} == before
    prepare(replace(wanted, max_length=300, overwrite=True))
    assert files_of(tmp_path / "out") == undisturbed(replace(wanted, max_length=300), tmp_path / "fresh")


def test_a_run_that_is_stopped_behind_its_last_unit_ends_the_same(wanted, tmp_path, monkeypatch):
    """All is written and the manifest is not: nothing is left to read, and no byte of the manifest may differ."""

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("automodel_cli.engine.prep.session.Session.close", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(replace(wanted, max_tokens=None))
    monkeypatch.undo()

    prepare(replace(wanted, max_tokens=None))

    assert files_of(tmp_path / "out") == undisturbed(replace(wanted, max_tokens=None), tmp_path / "fresh")


def test_a_full_disk_is_said_and_survived(wanted, tmp_path):
    """The limit on a file's size stands in for a full disk: an error, no traceback of ours, then the same bytes."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, 90_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    process = start(wanted, 0.0, preexec_fn=limit, stderr=subprocess.PIPE)
    _, stderr = process.communicate()
    assert process.returncode == 1
    assert "DataError" in stderr
    assert "cannot be written" in stderr
    assert not (tmp_path / "out" / "manifest.json").exists()

    prepare(wanted)

    assert files_of(tmp_path / "out") == undisturbed(wanted, tmp_path / "fresh")


def test_a_full_disk_in_the_middle_of_the_work_is_survived(wanted, tmp_path, monkeypatch):
    """ENOSPC out of `write` after several shards: the message counts the free bytes, and no byte is lost."""
    import errno

    from automodel_cli.engine.shards.writer import ShardWriter

    append, appended = ShardWriter._append, []

    def failing(self, tokens):
        appended.append(len(tokens))
        if sum(appended) > 400_000:
            from automodel_cli.engine.durable import explain_write_errors

            with explain_write_errors(self._path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, tokens)

    monkeypatch.setattr(ShardWriter, "_append", failing)
    with pytest.raises(DataError, match=r"disk is full: [\d,]+ bytes are free"):
        prepare(wanted)
    monkeypatch.undo()

    result = prepare(wanted)

    assert result.resumed_tokens > 300_000
    assert files_of(tmp_path / "out") == undisturbed(wanted, tmp_path / "fresh")


def test_counts_pass_32_bits(wanted, tmp_path):
    """A run that goes on behind 2**32 tokens, documents and bytes counts on from there."""

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(replace(wanted, max_tokens=None), interrupt)
    path = tmp_path / "out" / "progress.json"
    state = json.loads(path.read_text())
    for counted, names in (
        (state["reading"], ("num_documents", "num_texts", "num_tokens", "source_bytes")),
        (state["splits"]["train"], ("num_documents", "num_tokens", "text_bytes")),
    ):
        for name in names:
            counted[name] += 2**32
    train = state["splits"]["train"]
    counts = np.frombuffer(base64.b64decode(train["counts"]), dtype="<i8").copy()
    counts[ord("w")] += 2**32
    train["counts"] = base64.b64encode(counts.tobytes()).decode()
    path.write_text(json.dumps(state))

    manifest = prepare(replace(wanted, max_tokens=None)).manifest

    plain = json.loads(undisturbed(replace(wanted, max_tokens=None), tmp_path / "fresh")["manifest.json"])
    in_shards = sum(shard.num_tokens for shard in manifest.splits["train"].shards)
    assert manifest.splits["train"].num_tokens == in_shards + 2**32
    assert manifest.reading.num_documents == plain["reading"]["num_documents"] + 2**32
    assert 0 < manifest.splits["train"].unigram_entropy_nats < 0.01


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """The peak at ten times the text is that of one time, give or take what allocators do."""
    rng = np.random.default_rng(0)
    lines = [json.dumps({"text": " ".join(map(str, rng.integers(0, 10**6, 300).tolist()))}) for _ in range(8000)]
    for copy in range(10):
        (tmp_path / f"{copy}.jsonl").write_text("\n".join(lines))
    script = (
        "import resource, sys; from pathlib import Path; from automodel_cli.engine.prep.prepare import *; "
        "prepare(PrepOptions(sys.argv[1], tokenizer='gpt2', output_dir=Path(sys.argv[2]), num_workers=2)); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )

    once, tenfold = (
        int(subprocess.check_output([sys.executable, "-c", script, str(tmp_path / pattern), str(tmp_path / name)]))
        for pattern, name in (("0.jsonl", "once"), ("*.jsonl", "tenfold"))
    )

    assert tenfold < 1.25 * once


def test_a_shard_that_was_lost_meanwhile_is_noticed(wanted, tmp_path):
    """A finished shard of an unfinished run that is gone or cut is never papered over."""
    kill_after(start(wanted, 0.02), 14, 0.0)
    shard = tmp_path / "out" / "train_000000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])

    with pytest.raises(DataError, match=r"train_000000\.bin: the file has .* bytes, but .* were written"):
        prepare(wanted)
