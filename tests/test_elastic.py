"""`deterministic: elastic` as a user has it: the same bits on any number of ranks, in any of its layouts.

Takes a minute or more: `pytest -m "slow and dist" tests/test_elastic.py`.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

pytestmark = [pytest.mark.dist, pytest.mark.slow]
# Sizes that no number of ranks divides; documents end where they will, so labels are unevenly masked.
ODD = {"model__vocab_size": 259, "model__n_embd": 18, "step_scheduler__local_batch_size": 2}
DECAY = {"lr_scheduler__lr_decay_steps": 6}  # whatever max_steps is
MASKED = """
import numpy as np
from automodel_cli.engine.data.nanogpt_dataset import NanogptDataset

class Masked(NanogptDataset):
    def gather(self, sample_ids):
        batch = {name: np.array(values, dtype=np.int64) for name, values in super().gather(sample_ids).items()}
        batch["labels"][np.arange(16) < (sample_ids * 5 % 16)[:, None]] = -100
        return batch
"""


@pytest.fixture
def trained(tiny_run):
    """Runs amcli on the tiny configuration, of which it gives the weights' hash and what was said of every step."""
    (tiny_run.parent / "masked.py").write_text(MASKED)
    text = tiny_run.read_text().replace(
        "automodel_cli.engine.data.nanogpt_dataset.NanogptDataset", "masked.py:Masked", 1
    )
    tiny_run.write_text(text.replace("num_threads: 1\n", "deterministic: elastic\n"))

    def run(command: str, root: str, ranks: int, **assignments: object) -> list[object]:
        values = {**ODD, "checkpoint__checkpoint_dir": root, **assignments}
        settings = [f"--set={name.replace('__', '.')}={value}" for name, value in values.items()]
        line = [sys.executable, "-m", "automodel_cli", command, *([root] * (command == "resume"))]
        line += ["-c", str(tiny_run), *settings]
        line += [f"--nproc-per-node={ranks}"] * (ranks > 1)
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=200)
        assert done.returncode in (0, 6), done.stderr
        return outcome(root)

    return run


def outcome(root: str) -> list[object]:
    """SHA-256 of the last weights, which are written whole; loss and norm of every step and the validation losses."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(Path(root) / "LATEST" / "model" / "model.safetensors").items()):
        digest.update(name.encode() + tensor.tobytes())
    records = map(json.loads, (Path(root) / "metrics.jsonl").read_text().splitlines())
    shown = [[record.get(key) for key in ("event", "step", "loss", "grad_norm", "val_loss")] for record in records]
    return [digest.hexdigest(), *(each for each in shown if each[0] in ("step", "validation"))]


@pytest.mark.parametrize("layout", ["ddp", "fsdp2"])
def test_one_two_and_four_ranks_end_in_the_same_bits(trained, layout):
    """Weights, losses, norms and validation losses, with dropout, accumulation and uneven labels."""
    alone = trained("pretrain", "alone", 1)

    two = trained("pretrain", "two", 2, distributed__strategy=layout)
    four = trained("pretrain", "four", 4, distributed__strategy=layout)

    assert len(alone) == 1 + 6 + 2
    assert two == alone
    assert four == alone


def test_a_run_of_two_ranks_goes_on_alone_as_if_four_had_run_through(trained):
    """Saved after step 4 of 6 by two ranks with FSDP2, resumed by one process."""
    through = trained("pretrain", "four", 4, distributed__strategy="ddp", **DECAY)

    trained("pretrain", "moved", 2, step_scheduler__max_steps=4, **DECAY)
    moved = trained("resume", "moved", 1, step_scheduler__max_steps=6, **DECAY)

    at_the_stop = ["validation", 4]  # a run validates at its end
    assert [each for each in moved if each[:2] != at_the_stop] == through
