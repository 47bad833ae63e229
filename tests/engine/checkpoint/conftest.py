"""A small snapshot, different at every step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from automodel_cli.engine.checkpoint.manifest import MANIFEST_NAME, FileRecord, sha256_of
from automodel_cli.engine.checkpoint.snapshot import Snapshot


def snapshot_at(step: int) -> Snapshot:
    generator = torch.Generator().manual_seed(step)
    return Snapshot(
        step=step,
        config_yaml=f"seed: {step}\nmodel: {{n_layer: 1, n_embd: 4}}\noptimizer: {{lr: 1e-3}}\npath: ${{DATA,here}}\n",
        model_tensors={
            "transformer.wte.weight": torch.randn(7, 4, generator=generator),
            "transformer.h.0.attn.c_attn.bias": torch.randn(12, generator=generator).to(torch.bfloat16),
            "transformer.ln_f.weight": torch.ones(4),
        },
        model_config={"architectures": ["GPT2LMHeadModel"], "tie_word_embeddings": True},
        optim_tensors={"transformer.wte.weight.step": torch.tensor(float(step)), "empty": torch.zeros(0, 3)},
        train_state={"step": step, "tokens_seen": step * 4096, "loss": 0.1 + 0.2, "val_loss": None},
        rng_tensors={"torch_cpu": torch.arange(64, dtype=torch.uint8)},
    )


def record_files(directory: Path) -> dict[str, FileRecord]:
    """What a manifest would say of the files as they are now."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)
    return {path.relative_to(directory).as_posix(): FileRecord(path.stat().st_size, sha256_of(path)) for path in files}


@pytest.fixture
def snapshots() -> Callable[[int], Snapshot]:
    """Makes the snapshot of a step; equal steps give equal snapshots."""
    return snapshot_at
