"""A run on several ranks as a user has it: launched, stopped, killed, restarted, resumed on another number."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from automodel_cli import app

# Ends one rank with a signal when its loss has been called often enough.
DISTURBED = """
import os, signal
from automodel_cli.engine.loss.masked_ce import MaskedCrossEntropy

class Disturbed(MaskedCrossEntropy):
    def __init__(self, at_call=0, what="", rank="1"):
        super().__init__()
        self.calls, self.at_call, self.what, self.rank = 0, at_call, what, rank

    def __call__(self, *args, **kwargs):
        import torch
        self.calls += torch.is_grad_enabled()
        first_attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if self.calls == self.at_call and os.environ.get("RANK") == self.rank and first_attempt:
            self.calls += 1
            if self.what == "error":
                raise ValueError("a defect of the user's own")
            os.kill(os.getpid(), getattr(signal, self.what))
        return super().__call__(*args, **kwargs)
"""

pytestmark = pytest.mark.dist


@pytest.fixture
def run(tiny_run):
    """Runs amcli on the tiny configuration, with a loss that can be disturbed, in one thread per rank."""
    (tiny_run.parent / "disturbed.py").write_text(DISTURBED)
    tiny_run.write_text(tiny_run.read_text() + "loss_fn: {_target_: 'disturbed.py:Disturbed'}\n")

    def started(command: str, *arguments: str, **assignments: object) -> subprocess.CompletedProcess[str]:
        settings = [f"--set={name.replace('__', '.')}={value}" for name, value in assignments.items()]
        line = [sys.executable, "-m", "automodel_cli", command, "-c", str(tiny_run), *arguments, *settings]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(line, capture_output=True, text=True, check=False, timeout=200, env=environment)

    return started


def tensors(root: str, step: int) -> list[str]:
    """Hashes of weights and optimizer state."""
    directory = Path(root) / f"step_{step:06d}"
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.glob("[mo]*/*.safetensors"))]


def steps(root: str) -> list[list[float]]:
    records = map(json.loads, (Path(root) / "metrics.jsonl").read_text().splitlines())
    return [[record["step"], record["loss"]] for record in records if record["event"] == "step"]


def test_stopped_and_resumed_on_two_ranks_ends_in_the_same_bits(run):
    """SIGTERM at one rank saves the step on all, exits with 6, and the rest equals the run that was never stopped.

    The local batch of the stopped run is that of one process, the whole step: each of two ranks takes its 4 samples.
    In the other one SIGUSR1 at rank 1 saves step 3 on both, and it goes on as ever.
    """
    straight = {"checkpoint__checkpoint_dir": "straight", "loss_fn__at_call": 3, "loss_fn__what": "SIGUSR1"}
    assert run("pretrain", "--nproc-per-node=2", **straight).returncode == 0
    saved = [path.name for path in sorted(Path("straight").glob("step_*"))]
    assert saved == [f"step_{step:06d}" for step in (2, 3, 4, 6)]

    whole = {"step_scheduler__local_batch_size": 8}
    stopped = run("pretrain", "--nproc-per-node=2", loss_fn__at_call=3, loss_fn__what="SIGTERM", **whole)
    resumed = run("resume", "--nproc-per-node=2", **whole)

    assert stopped.returncode == 6
    assert (stopped.stderr.count("stopped after"), stopped.stderr.count("error:")) == (1, 0)
    assert "stopped after step 3" in stopped.stderr
    assert "4, a rank's samples of a step; local_batch_size allows 8" in stopped.stdout
    assert resumed.returncode == 0, resumed.stderr
    assert tensors("checkpoints", 6) == tensors("straight", 6)
    assert steps("checkpoints") == steps("straight")


@pytest.mark.slow
def test_a_run_goes_on_with_any_number_of_ranks(run):
    """2 -> 1 -> 4 ranks train on the same samples as one process: losses agree step by step."""
    overrides = {"model__dropout": 0, "step_scheduler__local_batch_size": 1}
    assert run("pretrain", checkpoint__checkpoint_dir="alone", **overrides).returncode == 0

    for command, ranks, last in (("pretrain", 2, 2), ("resume", 1, 4), ("resume", 4, 6)):
        # A constant rate: the schedule must not depend on where the run was cut.
        done = run(command, f"--nproc-per-node={ranks}", step_scheduler__max_steps=last, **overrides)
        assert done.returncode == 0, done.stderr

    expected = [loss for _, loss in steps("alone")]
    assert [loss for _, loss in steps("checkpoints")][:2] == pytest.approx(expected[:2], abs=1e-5)
    assert [step for step, _ in steps("checkpoints")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_parts_of_any_number_of_ranks_are_read_by_any_other(run):
    """4 -> 2 -> 1 -> 3 ranks that write parts end in the bits of ranks whose checkpoints rank 0 wrote whole."""
    overrides = {"step_scheduler__local_batch_size": 1, "step_scheduler__global_batch_size": 12}
    for root, consolidated in (("parts", "final"), ("whole", "every")):
        own = {**overrides, "checkpoint__checkpoint_dir": root, "checkpoint__save_consolidated": consolidated}
        for command, ranks, last in (("pretrain", 4, 2), ("resume", 2, 4), ("resume", 1, 6), ("resume", 3, 8)):
            # What is final is decided by the last start: until then, every checkpoint is one on the way.
            on_the_way = own if last == 8 or root == "whole" else {**own, "checkpoint__save_consolidated": "false"}
            place = [root] if command == "resume" else []
            done = run(command, *place, f"--nproc-per-node={ranks}", step_scheduler__max_steps=last, **on_the_way)
            assert done.returncode == 0, done.stderr

    for step, parts in ((2, 4), (4, 2), (6, 1)):
        assert len(list(Path(f"parts/step_{step:06d}/model").glob("*.safetensors"))) == parts
    name = "step_000008/model/model.safetensors"
    assert Path("parts", name).read_bytes() == Path("whole", name).read_bytes()


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_with_its_name(run):
    """No rank is left waiting, and the one that was killed is blamed, not those that noticed."""
    killed = run("pretrain", "--nproc-per-node=2", loss_fn__at_call=3, loss_fn__what="SIGKILL")

    assert killed.returncode == 1
    assert killed.stderr.count("error:") == 1
    assert "rank 1" in killed.stderr
    assert "SIGKILL" in killed.stderr


@pytest.mark.slow
def test_an_exception_at_one_rank_is_shown_once(run):
    """Rank, host, exception and its innermost frames; the exit code is that of a defect."""
    failed = run("pretrain", "--nproc-per-node=2", loss_fn__at_call=3, loss_fn__what="error")

    assert failed.returncode == 1
    assert failed.stderr.count("error:") == 1
    assert "rank 1 on" in failed.stderr
    assert "ValueError: a defect of the user's own" in failed.stderr
    assert "disturbed.py" in failed.stderr


@pytest.mark.slow
def test_a_job_comes_back_from_its_last_checkpoint(run):
    """With --max-restarts, a killed rank costs the steps since the last save, and the weights are the same bits."""
    assert run("pretrain", "--nproc-per-node=2", checkpoint__checkpoint_dir="straight").returncode == 0

    back = run("pretrain", "--nproc-per-node=2", "--max-restarts=1", loss_fn__at_call=6, loss_fn__what="SIGKILL")

    assert back.returncode == 0, back.stderr
    assert "resuming after step 4" in back.stdout
    assert tensors("checkpoints", 6) == tensors("straight", 6)


@pytest.mark.slow
def test_an_error_that_all_ranks_meet_is_told_by_the_first(run):
    """A loss that is not finite keeps its exit code through torchrun."""
    diverged = run("pretrain", "--nproc-per-node=2", optimizer__lr="1e30", clip_grad_norm__max_norm="null")

    assert diverged.returncode == 5, diverged.stderr
    assert diverged.stderr.count("error:") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nproc-per-node", "3"], "the 3 data-parallel ranks"),
        (["--nproc-per-node", "2", "--set", "distributed.tp_size=3"], "no multiple of it"),
        (["--nproc-per-node", "2", "--set", "distributed.dp_size=3"], "set dp_size to 2"),
        (["--nproc-per-node", "many"], "auto, gpu, cpu"),
        (["--nnodes", "2"], "--nnodes needs --nproc-per-node"),
        (["--set", "distributed.cp_size=2"], "`--nproc-per-node 2` starts 2 of them"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused_before_any_rank_starts(tiny_run, capsys, arguments, words):
    """The parent knows how many ranks there will be, and says what would work."""
    assert app.run(["pretrain", "-c", str(tiny_run), *arguments]) == 2

    assert words in capsys.readouterr().err
    assert not Path("checkpoints").exists()
