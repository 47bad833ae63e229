"""A run that has no memory left says what would help, ends with its own exit code, and loses nothing that was saved."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

# The logits of one forward pass of all samples take 3.4 GB at once: more than the limit, so none is ever touched.
LIMIT_BYTES = 3_500_000_000
WIDE = ["model.vocab_size=100000", "model.n_embd=8", "step_scheduler.global_batch_size=512"]
WIDE += ["step_scheduler.val_every_steps=null", "step_scheduler.max_steps=2", "step_scheduler.ckpt_every_steps=1"]
MASKED = "loss_fn._target_=automodel_cli.engine.loss.masked_ce.MaskedCrossEntropy"
# Asks for more than any machine has, on rank 1 in the third step.
GREEDY = """
import os, torch
from automodel_cli.engine.loss.masked_ce import MaskedCrossEntropy

class Greedy(MaskedCrossEntropy):
    calls = 0

    def __call__(self, *args, **kwargs):
        Greedy.calls += torch.is_grad_enabled()
        if Greedy.calls == 3 and os.environ.get("RANK") == "1":
            torch.empty(2**60, dtype=torch.uint8)
        return super().__call__(*args, **kwargs)
"""
ALL_AT_ONCE = "step_scheduler.local_batch_size=512"
SMALL = "step_scheduler.local_batch_size=64"


def amcli(*arguments: str, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the command line, with so much address space for each of its processes."""

    def confine() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    line = [sys.executable, "-m", "automodel_cli", *arguments]
    return subprocess.run(
        line, capture_output=True, text=True, check=False, timeout=200, env=environment, preexec_fn=confine
    )


def with_settings(*assignments: str) -> list[str]:
    """Assignments as options."""
    return [f"--set={assignment}" for assignment in assignments]


def hashes(root: Path) -> dict[str, str]:
    """SHA-256 of every file of all checkpoints."""
    files = (path for path in root.rglob("*") if path.is_file() and path.name != "metrics.jsonl")
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_run_without_memory_names_three_settings_and_keeps_what_was_saved(tiny_run):
    """Exit code 7, no traceback, three options with their bytes; the checkpoint before is untouched and goes on."""
    begun = amcli("pretrain", "-c", str(tiny_run), *with_settings(*WIDE, SMALL, "step_scheduler.max_steps=1"))
    assert begun.returncode == 0, begun.stderr
    before = hashes(Path("checkpoints"))

    failed = amcli("resume", *with_settings(MASKED, ALL_AT_ONCE, "step_scheduler.max_steps=2"), limit=LIMIT_BYTES)

    assert failed.returncode == 7, failed.stderr
    assert "Traceback" not in failed.stderr
    assert re.search(
        r"step 2: out of memory on this machine in a forward pass: 3\.28 GB more were asked for", failed.stderr
    )
    named = re.findall(r"^    --set (\S+) +saves (\S+ \S+):", failed.stderr, re.MULTILINE)
    assert len(named) == 3
    assert named[0][0] == "loss_fn._target_=automodel_cli.engine.loss.linear_ce.ChunkedLinearCrossEntropy"
    assert "step_scheduler.local_batch_size=256" in [option for option, _ in named]
    assert "step_000001 is whole: `amcli resume checkpoints --set " in failed.stderr
    assert hashes(Path("checkpoints")) == before


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_one_rank_without_memory_ends_the_run_with_its_message(tiny_run, strategy):
    """Two ranks: the message of rank 1 is the one shown, once, with its exit code; the checkpoint before is whole."""
    (tiny_run.parent / "greedy.py").write_text(GREEDY)
    settings = ["loss_fn={_target_: 'greedy.py:Greedy'}", f"distributed.strategy={strategy}"]

    failed = amcli("pretrain", "-c", str(tiny_run), *with_settings(*settings), "--nproc-per-node=2")

    assert failed.returncode == 7, failed.stderr
    assert re.search(r"^error: rank 1 on \S+: step 3: out of memory on this machine in a forward", failed.stderr, re.M)
    assert failed.stderr.count("error:") == 1
    assert "Traceback" not in failed.stderr
    assert "step_000002 is whole: `amcli resume checkpoints --set " in failed.stderr
