"""Every layout trains the model that one process trains: losses, gradient norms, weights and optimizer state.

All cases of a number of ranks share one group of processes (parity_ranks.py). The full table takes minutes:
`pytest -m "slow and dist" tests/engine/distributed/test_parity.py`.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RANKS = Path(__file__).with_name("parity_ranks.py")
SECONDS = 280
LAYOUTS: dict[int, dict[str, dict[str, Any]]] = {
    1: {"fsdp2 of one": {"reshard_after_forward": False}},
    2: {
        "ddp": {"strategy": "ddp"},
        "fsdp2": {"strategy": "fsdp2"},
        "tp": {"tp_size": 2},
        "tp+sequence": {"tp_size": 2, "sequence_parallel": True},
        "cp": {"cp_size": 2},
    },
    3: {"ddp": {"strategy": "ddp"}, "fsdp2": {}},
    4: {
        "ddp": {"strategy": "ddp"},
        "fsdp2": {"defer_fsdp_grad_sync": False},
        "hsdp": {"dp_replicate_size": 2},
        "fsdp2 x tp": {"tp_size": 2},
        "fsdp2 x tp+sequence": {"tp_size": 2, "sequence_parallel": True},
        "fsdp2 x cp": {"cp_size": 2},
        "hsdp x cp": {"cp_size": 2, "dp_replicate_size": 2},
        "cp x tp": {"cp_size": 2, "tp_size": 2, "dp_size": 1},
        "ddp x tp": {"strategy": "ddp", "tp_size": 2},
        "ddp x cp": {"strategy": "ddp", "cp_size": 2},
    },
}


def cases(ranks: int, models: list[str], optimizers: list[str], accumulations: list[int]) -> dict[str, Any]:
    """The table of one number of ranks."""
    table = {}
    combinations = itertools.product(LAYOUTS[ranks].items(), models, optimizers, accumulations, (True, False))
    for (name, layout), model, optimizer, accumulation, uneven in combinations:
        if model == "llama" and layout.get("sequence_parallel"):
            continue  # its plan has none
        labels = "uneven" if uneven else "even"
        # Told apart by everything but the labels: one kind of labels for each is enough.
        if uneven == (accumulation == 1 and model == "gpt2"):
            continue
        table[f"{name}, {model}, {optimizer}, {accumulation} micro-batches, {labels} labels"] = {
            "layout": layout,
            "model": model,
            "optimizer": optimizer,
            "accumulation": accumulation,
            "uneven": uneven,
        }
    return table


def run(ranks: int, table: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Trains a table on so many ranks, and gives rank 0's comparison with one process."""
    (directory / "cases.json").write_text(json.dumps(table))
    arguments = [str(directory / name) for name in ("store", "cases.json", "out.json")]
    store, path, out = arguments
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, str(RANKS), store, str(rank), str(ranks), path, out],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        said = [process.communicate(timeout=SECONDS)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert Path(out).exists(), "\n".join(said)
    found = json.loads(Path(out).read_text())
    assert list(found) == list(table), "\n".join(said)
    return found


def check(found: dict[str, Any]) -> None:
    """Rounding and nothing else: fp32 sums in another order, seen through AdamW's division by a small root."""
    for name, difference in found.items():
        assert difference["loss"] < 1e-5, (name, difference)
        assert difference["norm"] < 1e-5, (name, difference)
        assert difference["momentum"] < 1e-5, (name, difference)
        assert difference["weights"] < 5e-5, (name, difference)
        assert difference["same_state"], name
        assert difference["same_again"], name


@pytest.mark.dist
def test_two_ranks_train_what_one_process_trains(tmp_path):
    """DDP, FSDP2, tensor, sequence and context parallel: as one process but for rounding, and twice alike."""
    found = run(2, cases(2, ["gpt2"], ["adamw"], [2]), tmp_path)

    check(found)


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("model", ["gpt2", "llama"])
@pytest.mark.parametrize("ranks", list(LAYOUTS))
def test_every_layout_trains_what_one_process_trains(tmp_path, ranks, model, optimizer):
    """The whole table: layouts x accumulation x labels; Muon's iteration in fp32, where bf16 would magnify rounding."""
    accumulations = [1] if ranks == 3 else [1, 2]

    found = run(ranks, cases(ranks, [model], [optimizer], accumulations), tmp_path)

    check(found)
