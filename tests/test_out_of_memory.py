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
