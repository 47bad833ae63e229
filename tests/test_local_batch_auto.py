"""`local_batch_size: auto` in a whole run: the bits of the number by hand, kept by a resume, known to every command."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from automodel_cli.app import run

AUTO = "--set=step_scheduler.local_batch_size=auto"


def weights(root: Path, step: int) -> str:
    """SHA-256 of the weights of a checkpoint."""
    return hashlib.sha256((root / f"step_{step:06d}" / "model" / "model.safetensors").read_bytes()).hexdigest()


def saved_number(root: Path, step: int) -> object:
    """`local_batch_size` in a checkpoint's configuration."""
    section = yaml.safe_load((root / f"step_{step:06d}" / "config.yaml").read_text())["step_scheduler"]
    return section["local_batch_size"]


def test_auto_trains_as_the_number_by_hand_and_resumes_with_it(tiny_run, capsys):
    """Equal weights by SHA-256, also when a resume is given `auto` again; the number stands in the checkpoint."""
    pretrain = ["pretrain", "-c", str(tiny_run)]
    assert run([*pretrain, AUTO, "--set=checkpoint.checkpoint_dir=auto"]) == 0
    assert "8 of 8 samples, the most up to 4,096 tokens" in capsys.readouterr().out
    assert run([*pretrain, "--set=step_scheduler.local_batch_size=8", "--set=checkpoint.checkpoint_dir=hand"]) == 0
    halves = [*pretrain, AUTO, "--set=checkpoint.checkpoint_dir=halves"]

    assert run([*halves, "--set=step_scheduler.max_steps=4", "--set=lr_scheduler.lr_decay_steps=6"]) == 0
    capsys.readouterr()
    assert run(["resume", "halves", "-c", str(tiny_run), AUTO, "--set=checkpoint.checkpoint_dir=halves"]) == 0

    assert "as in the checkpoint" in capsys.readouterr().out
    assert weights(Path("auto"), 6) == weights(Path("hand"), 6) == weights(Path("halves"), 6)
    assert saved_number(Path("auto"), 6) == saved_number(Path("halves"), 6) == 8


def test_a_resume_with_auto_keeps_a_number_that_is_not_the_largest(tiny_run, capsys):
    """Other micro-batches would give other bits."""
    assert run(["pretrain", "-c", str(tiny_run), "--set=step_scheduler.max_steps=2"]) == 0
    capsys.readouterr()

    assert run(["resume", "-c", str(tiny_run), AUTO, "--set=step_scheduler.max_steps=3"]) == 0

    said = capsys.readouterr().out
    assert "4 of 8 samples, as in the checkpoint" in said
    assert "-> auto" not in said
    assert saved_number(Path("checkpoints"), 3) == 4


@pytest.mark.dist
@pytest.mark.slow
def test_on_other_ranks_the_number_is_found_anew(tiny_run):
    """What one rank took is no measure for two: both say the same new number, and why."""
    assert run(["pretrain", "-c", str(tiny_run), AUTO, "--set=step_scheduler.max_steps=2"]) == 0
    line = [sys.executable, "-m", "automodel_cli", "resume", "-c", str(tiny_run), AUTO, "--nproc-per-node=2"]

    resumed = subprocess.run(line, capture_output=True, text=True, check=False, timeout=100)

    assert resumed.returncode == 0, resumed.stderr
    assert "4 of 4 samples" in resumed.stdout
    assert "found anew, since the run was saved by 1 rank and goes on with 2" in resumed.stdout
    assert saved_number(Path("checkpoints"), 6) == 4


def test_every_command_knows_auto(tiny_run, capsys):
    """The check passes, the plan counts with what it finds."""
    assert run(["config", "show", "-c", str(tiny_run), AUTO, "--check"]) == 0
    assert run(["config", "show", "-c", str(tiny_run), AUTO]) == 0
    assert "local_batch_size: auto" in capsys.readouterr().out
    assert run(["plan", "-c", str(tiny_run), AUTO, "--json"]) == 0

    found = json.loads(capsys.readouterr().out)

    assert found["largest_dividing_local_batch_size"] == 8
    assert found["derived"]["accumulation"] == 1
    assert found["memory"]["total"] > 0


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("aut", "'aut', but it must be a whole number or auto"),
        ("1.5", "1.5, but it must be a whole number or auto"),
        ("0", "0, but it must be at least 1"),
    ],
)
def test_what_is_neither_a_number_nor_auto_is_refused(tiny_run, capsys, value, said):
    """With both that would work."""
    assert (
        run(["config", "show", "-c", str(tiny_run), f"--set=step_scheduler.local_batch_size={value}", "--check"]) == 2
    )

    assert said in capsys.readouterr().err


def test_auto_still_needs_a_batch_that_the_ranks_can_share(tiny_run, capsys):
    """8 samples cannot be split among 3 ranks, whatever the micro-batch."""
    assert run(["plan", "-c", str(tiny_run), AUTO, "--nproc-per-node=3"]) == 2

    assert "must be a multiple of\nthe 3 data-parallel ranks" in capsys.readouterr().err
