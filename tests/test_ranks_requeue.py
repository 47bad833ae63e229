"""What a queue does to a run on several ranks: requests to its launcher, time limits, saves that fail on one rank."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.dist

# Disturbs one rank at its n-th call of the loss, which is its n-th step, in the first attempt of a job.
DISTURBED = """
import os, signal, sys, time
from automodel_cli.engine.loss.masked_ce import MaskedCrossEntropy

class Disturbed(MaskedCrossEntropy):
    def __init__(self, at_call=0, what="", rank=0):
        super().__init__()
        self.calls, self.at_call, self.what, self.rank = 0, at_call, what, rank

    def __call__(self, *args, **kwargs):
        import torch
        self.calls += torch.is_grad_enabled()
        first_attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if self.calls == self.at_call and os.environ.get("RANK") == str(self.rank) and first_attempt:
            self.calls += 1
            getattr(self, self.what)(signal.getsignal(signal.SIGUSR1).__self__)
        return super().__call__(*args, **kwargs)

    def time_is_up(self, stop):
        stop._stop_at = time.monotonic()

    def ask_the_launcher(self, stop):
        os.kill(os.getppid(), signal.SIGUSR1)
        deadline = time.monotonic() + 60
        while not stop.save_requested:
            if time.monotonic() > deadline:
                sys.exit("waited 60 s in vain until the launcher passed SIGUSR1 on")
            time.sleep(0.01)

    def disk_is_full(self, stop):
        from automodel_cli.engine.checkpoint.rank_files import RankFiles
        real = RankFiles.write
        def write(share, directory):
            if "step_000004" in str(directory):
                raise OSError(28, "No space left on device")
            return real(share, directory)
        RankFiles.write = write
"""


@pytest.fixture
def run(tiny_run):
    """Runs `amcli pretrain` on two ranks of the tiny configuration, disturbed at one of them."""
    (tiny_run.parent / "disturbed.py").write_text(DISTURBED)
    tiny_run.write_text(tiny_run.read_text() + "loss_fn: {_target_: 'disturbed.py:Disturbed'}\n")

    def started(*arguments: str, **assignments: object) -> subprocess.CompletedProcess[str]:
        settings = [f"--set={name.replace('__', '.')}={value}" for name, value in assignments.items()]
        line = [sys.executable, "-m", "automodel_cli", "pretrain", "-c", str(tiny_run), "--nproc-per-node=2"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [*line, *arguments, *settings], capture_output=True, text=True, check=False, timeout=200, env=environment
        )

    return started


def steps_of(root: str = "checkpoints") -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in sorted(Path(root).glob("step_*")) if path.is_dir()]


def test_a_stop_by_time_is_no_failure_that_is_restarted(run):
    """With --max-restarts left, the job ends with 6 after the step that it has saved, and begins nothing again."""
    options = ("--max-time=1h", "--max-restarts=1")

    stopped = run(*options, loss_fn__at_call=3, loss_fn__what="time_is_up")

    assert stopped.returncode == 6, stopped.stderr
    assert (stopped.stderr.count("stopped after"), stopped.stderr.count("error:")) == (1, 0)
    assert "--max-time is up: stopped after step 3, saved" in stopped.stderr
    assert "resuming" not in stopped.stdout
    assert steps_of() == [2, 3]


@pytest.mark.slow
def test_the_launcher_passes_a_request_to_save_on(run):
    """SIGUSR1 to the launcher, whose process id is what a user has: step 3 is saved, and the run ends as ever."""
    done = run(loss_fn__at_call=3, loss_fn__what="ask_the_launcher")

    assert done.returncode == 0, done.stderr
    assert steps_of() == [2, 3, 4, 6]


@pytest.mark.slow
def test_a_part_that_cannot_be_written_beside_the_training_is_told_to_all(run):
    """Rank 1's disk is full in step 4: that step is nowhere, both ranks train on, and the end is saved."""
    settings = {"checkpoint__is_async": "true", "checkpoint__on_save_error": "warn"}

    done = run(loss_fn__at_call=1, loss_fn__what="disk_is_full", loss_fn__rank=1, **settings)

    assert done.returncode == 0, done.stderr
    assert "step 4 is NOT saved" in done.stdout
    assert "rank 1" in done.stdout
    assert steps_of() == [2, 6]


@pytest.mark.slow
def test_a_save_that_fails_on_the_first_rank_warns_and_goes_on(run):
    """Its name is taken on rank 0, which tells the other; both train on."""
    Path("checkpoints").mkdir()
    Path("checkpoints/step_000002").write_text("in the way")

    done = run(checkpoint__on_save_error="warn")

    assert done.returncode == 0, done.stderr
    assert "step 2 is NOT saved" in done.stdout
    assert steps_of() == [4, 6]


@pytest.mark.slow
def test_two_ranks_save_the_same_bits_beside_the_training(run):
    """Every file of every checkpoint, in parts, as when it is waited for."""
    assert run(checkpoint__checkpoint_dir="waited").returncode == 0
    assert run(checkpoint__is_async="true").returncode == 0

    files = sorted(path.relative_to("waited") for path in Path("waited").glob("step_*/[mos]*/*.safetensors"))
    assert len(files) > 3 * 5
    assert all((Path("checkpoints") / name).read_bytes() == (Path("waited") / name).read_bytes() for name in files)
