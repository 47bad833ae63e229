"""Real runs, of one rank and of two, whose terminal goes away: all save and end as `tests/test_terminal.py` has it."""

from __future__ import annotations

import contextlib
import os
import pty  # noqa: TID251  # closed on purpose; `drain_until` reads it until then
import signal
import sys
import time
from pathlib import Path

import pytest

from automodel_cli.engine.checkpoint.layout import list_steps
from tests.test_terminal import drain_until, exit_code

pytestmark = [pytest.mark.slow, pytest.mark.dist]
SLOW = """
import time
from automodel_cli.engine.loss.masked_ce import MaskedCrossEntropy

class Slow(MaskedCrossEntropy):
    def __call__(self, *args, **kwargs):
        time.sleep(0.02)
        return super().__call__(*args, **kwargs)
"""


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("sent", "is_ignored", "code"),
    [
        (["SIGHUP", "SIGHUP"], False, 6),
        (["SIGTERM", "SIGHUP"], False, 6),
        (["SIGQUIT"], False, 6),
        ([], False, 6),  # closing the terminal sends SIGHUP
        (["SIGHUP"], True, 0),
    ],
)
def test_a_run_whose_terminal_is_closed_saves(tiny_run, ranks, sent, is_ignored, code):
    """By the signal that it heeds it stops, with the step saved; with `nohup` it goes on to its last step."""
    (tiny_run.parent / "slow.py").write_text(SLOW)
    command = f"pretrain -c {tiny_run} --nproc-per-node {ranks} --loss_fn._target_ slow.py:Slow --set device=cpu"
    lengths = "--step_scheduler.max_steps 60 --step_scheduler.ckpt_every_steps 60 --step_scheduler.val_every_steps 60"
    child, terminal = pty.fork()
    if child == 0:
        if is_ignored:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        arguments = [*command.split(), *lengths.split()]
        os.execv(sys.executable, [sys.executable, "-m", "automodel_cli", *arguments])
    seen = drain_until(terminal, b"step   5/60", seconds=90)
    for name in sent:
        os.kill(child, signal.Signals[name])
        time.sleep(0.05)
    with contextlib.suppress(OSError):
        os.close(terminal)

    ended = exit_code(child, seconds=90)

    steps = [step for step, path in list_steps(Path("checkpoints")) if (path / "manifest.json").is_file()]
    assert (ended, bool(steps)) == (code, True), seen()[-2000:]
    assert (max(steps) == 60) is (code == 0)
