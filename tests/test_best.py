"""`BEST` names the checkpoint with the lowest validation loss, and a better model is never lost in silence."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from automodel_cli import app
from automodel_cli.engine.train import checkpoint_manager, loop
from automodel_cli.engine.train.step import EvalResult
from automodel_cli.errors import CheckpointError

ROOT = Path("checkpoints")


@pytest.fixture
def losses(monkeypatch):
    """Sets the validation loss after each step; what a validation would find decides nothing here."""

    def found(**by_step: float) -> None:
        state = {}
        real = loop._queue
        monkeypatch.setattr(
            loop, "_queue", lambda run, now, *rest, **named: (state.update(now=now), real(run, now, *rest, **named))[1]
        )
        monkeypatch.setattr(
            loop, "evaluate", lambda *rest, **named: EvalResult(by_step[f"step{state['now'].step}"], 10)
        )

    return found


def best() -> tuple[str, float]:
    """The checkpoint that BEST names, and the loss that it has as its best."""
    state = json.loads((ROOT / "BEST/state/train_state.json").read_text())
    return (ROOT / "BEST").readlink().name, state["best_val_loss"]


def steps_of() -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in sorted(ROOT.glob("step_*"))]


def test_best_is_the_best_of_what_is_saved_and_the_other_is_said(tiny_run, losses, capsys):
    """Step 3 is better and not due: BEST is step 6, with its own loss, and the loss of step 3 does not stand for it."""
    losses(step3=2.0, step6=3.0)

    assert app.run(["pretrain", "-c", str(tiny_run)]) == 0

    assert best() == ("step_000006", 3.0)
    assert "step 3 is the best so far and is not saved" in capsys.readouterr().out


@pytest.mark.parametrize("is_async", ["true", "false"])
def test_save_best_saves_a_step_that_is_not_due(tiny_run, losses, is_async):
    """Step 3 is saved because it is the best, and stays BEST when step 6 is worse."""
    losses(step3=2.0, step6=3.0)
    options = ["--set", "checkpoint.save_best=true", "--set", f"checkpoint.is_async={is_async}"]

    assert app.run(["pretrain", "-c", str(tiny_run), *options]) == 0

    assert steps_of() == [2, 3, 4, 6]
    assert best() == ("step_000003", 2.0)


def test_a_stop_right_after_the_best_validation_saves_the_best(tiny_run, losses, monkeypatch):
    """The save of a signal is of a step that was validated: BEST moves with it."""
    losses(step3=2.0)
    real = loop._validate
    monkeypatch.setattr(loop, "_validate", lambda *rest: (real(*rest), signal.raise_signal(signal.SIGTERM))[0])

    assert app.run(["pretrain", "-c", str(tiny_run)]) == 6

    assert best() == ("step_000003", 2.0)


@pytest.mark.parametrize("is_async", ["true", "false"])
def test_the_best_that_could_not_be_saved_does_not_stand_in_the_way(tiny_run, losses, monkeypatch, is_async):
    """Step 2 was the best and its save failed: step 4, worse than that and better than all that is saved, is BEST."""
    losses(step1=5.0, step2=2.0, step3=4.0, step4=3.0, step5=4.0, step6=3.5)
    real = checkpoint_manager.finish

    def finish(own, *rest):
        if own.step == 2:
            raise CheckpointError("the disk is full")
        return real(own, *rest)

    monkeypatch.setattr(checkpoint_manager, "finish", finish)
    options = ["--set", "checkpoint.on_save_error=warn", "--set", "step_scheduler.val_every_steps=1"]

    assert app.run(["pretrain", "-c", str(tiny_run), *options, "--set", f"checkpoint.is_async={is_async}"]) == 0

    assert steps_of() == [4, 6]
    assert best() == ("step_000004", 3.0)
