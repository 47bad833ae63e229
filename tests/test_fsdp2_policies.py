"""The policies of FSDP2 as a user has them: bf16 weights over fp32 masters, and weights in the host's memory.

Runs that are compared on two ranks, or resumed, are slow: `pytest -m "slow and dist" tests/test_fsdp2_policies.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from automodel_cli import app

pytestmark = pytest.mark.dist

# Dropout draws other numbers on other ranks; a constant rate does not depend on where a run was cut.
ALIKE = ("model.dropout=0", "lr_scheduler.lr_decay_style=constant", "checkpoint.save_consolidated=every")


@pytest.fixture
def alone(tiny_run):
    """Trains three steps in this process; gives the directory."""

    def trained(root: str, *settings: str) -> Path:
        own = ("step_scheduler.max_steps=3", f"checkpoint.checkpoint_dir={root}", *ALIKE, *settings)
        assert app.run(["pretrain", "-c", str(tiny_run), *(f"--set={setting}" for setting in own)]) == 0
        return Path(root)

    return trained


@pytest.fixture
def on_two(tiny_run):
    """Trains three steps on two ranks; gives the directory."""

    def trained(root: str, *settings: str, command: str = "pretrain") -> Path:
        own = ("step_scheduler.max_steps=3", f"checkpoint.checkpoint_dir={root}", *ALIKE, *settings)
        done = subprocess.run(
            [sys.executable, "-m", "automodel_cli", command, *([root] if command == "resume" else [])]
            + ["-c", str(tiny_run), "--nproc-per-node=2"]
            + [f"--set={setting}" for setting in own],
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        return Path(root)

    return trained


def losses(root: Path) -> list[float]:
    records = map(json.loads, (root / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if record["event"] == "step"]


def hashes(root: Path, step: int = 3) -> dict[str, str]:
    """Of weights and optimizer state."""
    files = sorted((root / f"step_{step:06d}").glob("[mo]*/*.safetensors"))
    assert files
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_bf16_weights_train_as_one_process_in_bf16_and_leave_fp32_masters(alone, on_two, capsys):
    """Losses of three steps on one rank and on two, against `precision: bf16`; what is stored is fp32.

    Rounded are weights here, and inputs of products there, each to 8 bits (2^-9 of a number): losses of 5.5 differ by
    less than 2e-3. On one rank and on two, the same numbers are rounded: only the order of sums differs.
    """
    fp32, autocast = losses(alone("fp32")), losses(alone("autocast", "precision=bf16"))
    capsys.readouterr()
    one = alone("one", "distributed.strategy=fsdp2", "distributed.mp_policy=bf16")
    said = capsys.readouterr().out
    two = on_two("two", "distributed.mp_policy=bf16")

    assert losses(two) == pytest.approx(autocast, abs=2e-3)
    assert losses(one) == pytest.approx(losses(two), abs=1e-5)
    assert max(abs(ours - theirs) for ours, theirs in zip(losses(one), fp32, strict=True)) > 1e-4
    assert "gathered and multiplied in bf16" in said
    for path in two.glob("step_000003/[mo]*/*.safetensors"):
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float32}
    weights = load_file(two / "step_000003/model/model.safetensors")
    assert any((weight != weight.bfloat16().float()).any() for weight in weights.values())


def test_fsdp2_of_one_rank_without_policies_is_one_device(alone):
    """`strategy: fsdp2` alone changes nothing on one rank: the bits of `precision: bf16` without it."""
    plain = alone("plain", "precision=bf16")
    configured = alone("configured", "precision=bf16", "distributed.strategy=fsdp2")

    assert losses(configured) == losses(plain)
    assert hashes(configured) == hashes(plain)


def test_weights_in_the_hosts_memory_train_the_same_bits(alone):
    """Losses, weights and optimizer state of one rank by SHA-256."""
    there = alone("there", "distributed.mp_policy=bf16")
    offloaded = alone("offloaded", "distributed.mp_policy=bf16", "distributed.offload_policy=cpu")

    assert losses(offloaded) == losses(there)
    assert hashes(offloaded) == hashes(there)


@pytest.mark.slow
def test_weights_in_the_hosts_memory_of_two_ranks_train_the_same_bits(on_two):
    """As above, with shards that are gathered and gradients that are summed."""
    there, offloaded = on_two("there"), on_two("offloaded", "distributed.offload_policy=cpu")

    assert losses(offloaded) == losses(there)
    assert hashes(offloaded) == hashes(there)


@pytest.mark.slow
@pytest.mark.parametrize(
    "policies", [("offload_policy=cpu",), ("mp_policy=bf16",), ("offload_policy=cpu", "mp_policy=bf16")]
)
@pytest.mark.parametrize("consolidated", ["every", "false"])
def test_a_policy_is_saved_and_resumed_bit_for_bit(on_two, policies, consolidated):
    """Six steps straight, and three and three, whole checkpoints and parts."""
    own = [*(f"distributed.{policy}" for policy in policies), f"checkpoint.save_consolidated={consolidated}"]
    straight = on_two("straight", *own, "step_scheduler.max_steps=6")

    on_two("parts", *own)
    resumed = on_two("parts", *own, "step_scheduler.max_steps=6", command="resume")

    assert hashes(resumed, 6) == hashes(straight, 6)
    assert losses(resumed) == losses(straight)


@pytest.mark.gpu
def test_on_a_gpu_weights_in_the_hosts_memory_train_the_same_losses(alone):
    """Pinned pages, and gradients that travel to the host; its AdamW may round otherwise than the device's."""
    there = alone("there", "device=cuda", "distributed.mp_policy=bf16")
    offloaded = alone("offloaded", "device=cuda", "distributed.mp_policy=bf16", "distributed.offload_policy=cpu")

    assert losses(offloaded) == pytest.approx(losses(there), abs=1e-4)
