"""Saves beside the training: the bits of saves that are waited for, whole or not there, and no step lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from automodel_cli import app
from automodel_cli.engine.checkpoint.save import SaveStage
from automodel_cli.engine.train import checkpoint_manager, loop
from automodel_cli.engine.train.checkpoint_manager import CheckpointManager
from automodel_cli.errors import CheckpointError

ASYNC = ("--set", "checkpoint.is_async=true")


def hashes(root: str, step: int = 6) -> dict[str, str]:
    files = json.loads((Path(root) / f"step_{step:06d}/manifest.json").read_text())["files"]
    return {name: record["sha256"] for name, record in files.items() if name.endswith(".safetensors")}


def steps_of(root: str = "checkpoints") -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in sorted(Path(root).glob("step_*"))]


@pytest.fixture
def writer(monkeypatch):
    """Does something on the writer's thread before it writes a step; remembers which threads wrote."""

    class Writer:
        before = staticmethod(lambda step: None)
        threads: dict[int, str] = {}  # noqa: RUF012 (one instance, of this test)

    real = checkpoint_manager.finish

    def finish(own, *rest):
        Writer.threads[own.step] = threading.current_thread().name
        Writer.before(own.step)
        return real(own, *rest)

    Writer.threads.clear()
    monkeypatch.setattr(checkpoint_manager, "finish", finish)
    return Writer


@pytest.fixture
def at_step(monkeypatch):
    """Does something right after a step of the run."""

    def hook(step: int, act) -> None:
        real = loop._queue

        def wrapped(run, state, *arguments, **named):
            result = real(run, state, *arguments, **named)
            if state.step == step:
                act()
            return result

        monkeypatch.setattr(loop, "_queue", wrapped)

    return hook


def test_the_bits_are_those_of_saves_that_are_waited_for(tiny_run, writer, at_step, wait_until):
    """Every checkpoint, not only the last: what is written is the state of its step, though training went on."""
    command = ["pretrain", "-c", str(tiny_run)]
    assert app.run([*command, "--set", "checkpoint.checkpoint_dir=waited"]) == 0
    overtaken = threading.Event()
    writer.before = lambda step: wait_until("step 3 is trained", overtaken.is_set) if step == 2 else None
    at_step(3, overtaken.set)

    assert app.run([*command, *ASYNC]) == 0

    assert [hashes("checkpoints", step) for step in (2, 4, 6)] == [hashes("waited", step) for step in (2, 4, 6)]
    assert writer.threads == {2: "save step 2", 4: "save step 4", 6: "MainThread"}


def test_a_stop_while_a_save_is_under_way_loses_nothing(tiny_run, writer, at_step, wait_until):
    """SIGTERM in step 5, with step 4 not yet written: both are there, and the rest ends in the same bits."""
    assert app.run(["pretrain", "-c", str(tiny_run), "--set", "checkpoint.checkpoint_dir=straight"]) == 0
    stopped = threading.Event()
    writer.before = lambda step: wait_until("step 5 is trained", stopped.is_set) if step == 4 else None
    at_step(5, lambda: (signal.raise_signal(signal.SIGTERM), stopped.set()))
    command = ["pretrain", "-c", str(tiny_run), "--resume", "auto", *ASYNC]

    assert app.run(command) == 6
    assert steps_of() == [2, 4, 5]
    assert app.run(command) == 0

    assert hashes("checkpoints") == hashes("straight")


def test_the_next_save_waits_and_says_so_once(tiny_run, writer, monkeypatch, capsys, wait_until):
    """At most one save is under way; the one after it is not left out."""
    settled = threading.Event()
    real = CheckpointManager._conclude
    monkeypatch.setattr(CheckpointManager, "_conclude", lambda self, **how: (settled.set(), real(self, **how))[1])

    def cleared(step):
        wait_until("the run waits for the save", settled.is_set)
        settled.clear()

    writer.before = lambda step: cleared(step) if step in (2, 4) else None

    assert app.run(["pretrain", "-c", str(tiny_run), *ASYNC]) == 0

    assert steps_of() == [2, 4, 6]
    assert capsys.readouterr().out.count("is still being written") == 1


@pytest.mark.parametrize(("policy", "code", "saved"), [("stop", 4, []), ("warn", 0, [4, 6])])
def test_a_failure_on_the_writers_thread_does_what_was_asked_for(tiny_run, writer, capsys, policy, code, saved):
    """It stops the run with its own message and exit code, or is warned of, and the next step is saved."""

    def full(step):
        if step == 2:
            raise CheckpointError("the disk is full")

    writer.before = full

    assert app.run(["pretrain", "-c", str(tiny_run), *ASYNC, "--set", f"checkpoint.on_save_error={policy}"]) == code

    said = capsys.readouterr()
    assert "the disk is full" in (said.err if policy == "stop" else said.out)
    assert steps_of() == saved


def test_a_stop_after_a_failure_saves_what_is_newer(tiny_run, writer, at_step, capsys, wait_until):
    """The save of step 2 fails when the run is asked to stop after step 3, which is saved instead: exit code 6."""
    stopped = threading.Event()

    def fails(step):
        if step == 2:
            wait_until("the run is stopped", stopped.is_set)
            raise CheckpointError("the disk is full")

    writer.before = fails
    at_step(3, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.MonkeyPatch.context() as patch:
        real = CheckpointManager.finish
        patch.setattr(CheckpointManager, "finish", lambda self: (stopped.set(), real(self))[1])
        assert app.run(["pretrain", "-c", str(tiny_run), *ASYNC]) == 6

    assert "step 2 is NOT saved" in capsys.readouterr().out
    assert steps_of() == [3]


def test_an_error_of_the_run_does_not_cost_the_save_under_way(tiny_run, writer, at_step, wait_until):
    """The loss diverges in step 3 while step 2 is being written: it is there."""
    diverged = threading.Event()
    writer.before = lambda step: wait_until("step 3 is trained", diverged.is_set)

    def raise_defect():
        diverged.set()
        raise ValueError("a defect")

    at_step(3, raise_defect)

    assert app.run(["pretrain", "-c", str(tiny_run), *ASYNC]) == 1

    assert steps_of() == [2]


# Forks a run for each attempt, so that torch is imported once; each is killed inside its first save, or ends.
KILLED = """
import os, signal, sys
from automodel_cli import app
from automodel_cli.engine.train import checkpoint_manager
import torch, automodel_cli.engine.train.recipe
config, stages = sys.argv[1], sys.argv[2:]
real = checkpoint_manager.finish

def attempt(root, stage):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    def finish(own, *rest):
        def at(reached):
            if reached.name == stage:
                os.kill(os.getpid(), signal.SIGKILL)
        return real(own, at)
    checkpoint_manager.finish = finish
    os._exit(app.run(["pretrain", "-c", config, "--quiet", "--resume", "auto", "--set", "checkpoint.is_async=true",
                      "--set", f"checkpoint.checkpoint_dir={root}"]))

print([attempt("straight", "")], flush=True)
for stage in stages:
    print([attempt(stage, stage), attempt(stage, stage), attempt(stage, "")], flush=True)
"""


@pytest.mark.parametrize(
    "stages",
    [
        ("TENSORS_WRITTEN",),
        pytest.param(tuple(stage.name for stage in SaveStage), marks=pytest.mark.slow),
    ],
)
def test_kills_inside_a_save_beside_the_training_cost_nothing_older(tiny_run, stages):
    """Two SIGKILLs in a row at a stage, then to the end: the bits of the run that was never killed, and no debris."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-c", KILLED, str(tiny_run), *stages]

    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=250, env=environment)

    codes = [json.loads(text) for text in done.stdout.splitlines() if text.startswith("[")]
    assert codes == [[0], *([-9, -9, 0] for _ in stages)], done.stderr
    for stage in stages:
        assert hashes(stage) == hashes("straight")
        assert not [path.name for path in Path(stage).iterdir() if path.name.startswith(".")]
