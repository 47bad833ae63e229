"""What a queue does to a run: a limit of time, a request to save, a full disk, the same command once more."""

from __future__ import annotations

import errno
import json
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from automodel_cli import app
from automodel_cli.commands import pretrain
from automodel_cli.engine.checkpoint.rank_files import RankFiles
from automodel_cli.engine.train import loop


def steps_of(root: str = "checkpoints") -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in sorted(Path(root).glob("step_*"))]


@pytest.fixture
def at_step(monkeypatch):
    """Does something right after a step of the run."""

    def hook(step: int, act) -> None:
        real = loop._queue

        def wrapped(run, state, *arguments, **named):
            queued = real(run, state, *arguments, **named)
            if state.step == step:
                act()
            return queued

        monkeypatch.setattr(loop, "_queue", wrapped)

    return hook


def test_max_time_saves_and_the_same_command_continues(tiny_run, monkeypatch, at_step, capsys):
    """`pretrain --resume auto` starts, is stopped with 6 after step 3, continues, and then has nothing to do."""
    assert app.run(["pretrain", "-c", str(tiny_run), "--set", "checkpoint.checkpoint_dir=straight"]) == 0
    command = ["pretrain", "-c", str(tiny_run), "--resume", "auto", "--max-time", "1h"]
    real = pretrain.time.monotonic
    at_step(3, lambda: monkeypatch.setattr("automodel_cli.engine.train.signals.time.monotonic", lambda: real() + 3600))

    assert app.run(command) == 6
    stopped = capsys.readouterr()
    monkeypatch.setattr("automodel_cli.engine.train.signals.time.monotonic", real)

    assert "--max-time is up: stopped after step 3, saved" in stopped.err
    assert app.run(command) == 0
    assert "resuming after step 3" in capsys.readouterr().out
    assert app.run(command) == 0
    assert "nothing to train" in capsys.readouterr().out
    ours, theirs = (load_file(f"{root}/step_000006/model/model.safetensors") for root in ("checkpoints", "straight"))
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_sigusr1_saves_and_trains_on(tiny_run, at_step):
    """Step 3 is saved beside those that are due, and the run ends as ever."""
    at_step(3, lambda: signal.raise_signal(signal.SIGUSR1))

    assert app.run(["pretrain", "-c", str(tiny_run)]) == 0

    assert steps_of() == [2, 3, 4, 6]


@pytest.fixture
def full_disk(monkeypatch):
    """Saves of these steps fail as on a full disk."""

    def fills(*steps: int) -> None:
        real = RankFiles.write

        def write(share, directory):
            if any(directory.name.startswith(f".step_{step:06d}.") for step in steps):
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(share, directory)

        monkeypatch.setattr(RankFiles, "write", write)

    return fills


def test_a_failing_save_stops_the_run_or_warns(tiny_run, full_disk, capsys):
    """The default stops with 4; `warn` says at each failing save what is not saved, and trains on."""
    full_disk(2, 4)

    assert app.run(["pretrain", "-c", str(tiny_run)]) == 4
    assert steps_of() == []
    capsys.readouterr()
    assert app.run(["pretrain", "-c", str(tiny_run), "--set", "checkpoint.on_save_error=warn"]) == 0

    said = capsys.readouterr().out
    assert "step 2 is NOT saved" in said
    assert "step 4 is NOT saved" in said
    assert steps_of() == [6]


def test_the_last_save_may_not_fail(tiny_run, full_disk, capsys):
    """With `warn`, too: whoever reads the exit code must know that the result is lost."""
    full_disk(6)

    assert app.run(["pretrain", "-c", str(tiny_run), "--set", "checkpoint.on_save_error=warn"]) == 4

    assert "No space left" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-time", "3.5"], "3h30m"),
        (["--max-time", "0s"], "3h30m"),
        (["--resume", "always"], "amcli resume CHECKPOINT"),
        (["--resume", "auto", "--overwrite"], "--overwrite deletes it"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(tiny_run, capsys, options, words):
    assert app.run(["pretrain", "-c", str(tiny_run), *options]) == 2

    assert words in capsys.readouterr().err


def test_the_metrics_of_a_continued_run_have_every_step_once(tiny_run, at_step):
    """A stop in the middle leaves no step out and none twice."""
    at_step(4, lambda: signal.raise_signal(signal.SIGTERM))
    command = ["pretrain", "-c", str(tiny_run), "--resume", "auto"]

    assert [app.run(command), app.run(command)] == [6, 0]

    records = map(json.loads, Path("checkpoints/metrics.jsonl").read_text().splitlines())
    assert [record["step"] for record in records if record["event"] == "step"] == [1, 2, 3, 4, 5, 6]
