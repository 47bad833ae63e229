"""A stop signal is noticed whatever the run is doing, and everything that was finished by then is saved."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from automodel_cli import app
from automodel_cli.engine.train import checkpoint_manager, loop, recipe

# Blocks on one read, after it has asked the run to stop, as somebody would who sees it hang.
BLOCKING = """
import os, signal, time
from automodel_cli.engine.data.nanogpt_dataset import NanogptDataset

class Blocking(NanogptDataset):
    reads = 0

    def gather(self, sample_ids):
        self.reads += 1
        if self.reads == 5:
            stop, deadline = signal.getsignal(signal.SIGTERM).__self__, time.monotonic() + 30
            while not stop._is_waiting:
                if time.monotonic() > deadline:
                    raise TimeoutError("waited 30 s in vain until the training waits for this read")
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(3)
        return super().gather(sample_ids)
"""


def steps_of() -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in sorted(Path("checkpoints").glob("step_*"))]


def once(act):
    """Calls it the first time only: a second stop signal would end the process."""
    done = []
    return lambda: done or done.append(act())


def ask_to_stop():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def before(monkeypatch):
    """Asks the run to stop right before something is done for the first time."""

    def hook(module, name: str) -> None:
        real, ask = getattr(module, name), once(ask_to_stop)
        monkeypatch.setattr(module, name, lambda *arguments, **named: (ask(), real(*arguments, **named))[1])

    return hook


@pytest.mark.parametrize(
    ("module", "name", "saved"),
    [
        pytest.param(recipe, "train", [], id="before the first step"),
        pytest.param(loop, "queue_step", [1], id="in the first step, where a model is compiled"),
        pytest.param(checkpoint_manager, "finish", [2], id="in a save"),
        pytest.param(loop, "evaluate", [2, 3], id="in a validation"),
    ],
)
def test_a_stop_is_noticed_after_what_is_being_done(tiny_run, before, capsys, module, name, saved):
    """Exit code 6; the step that was begun is finished and saved, once, and no further one is begun."""
    before(module, name)

    assert app.run(["pretrain", "-c", str(tiny_run)]) == 6

    assert steps_of() == saved
    what = f"stopped after step {saved[-1]}, saved" if saved else "stopped after step 0, nothing is saved"
    assert what in capsys.readouterr().err


def test_a_stop_while_a_save_goes_on_beside_the_training_waits_for_it(tiny_run, before):
    """The signal comes on the way into the save of step 2: it is there, and so is the step that was begun after it."""
    before(checkpoint_manager, "finish")

    assert app.run(["pretrain", "-c", str(tiny_run), "--set", "checkpoint.is_async=true"]) == 6

    assert steps_of()[0] == 2


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_stop_while_a_read_hangs_saves_what_was_trained_on(tiny_run, tmp_path, capsys, num_workers):
    """The read hangs in the training thread, or in one of its own."""
    (tmp_path / "blocking.py").write_text(BLOCKING)
    options = ["--set", "dataset._target_=blocking.py:Blocking", "--set", f"dataloader.num_workers={num_workers}"]

    assert app.run(["pretrain", "-c", str(tiny_run), *options]) == 6

    assert steps_of() == [2]
    assert "stopped after step 2, saved" in capsys.readouterr().err
