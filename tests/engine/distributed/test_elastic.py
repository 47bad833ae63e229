"""Elastic runs: the same bits on any number of data-parallel ranks, in every layout that they allow.

All cases of a number of ranks share one group of processes (elastic_ranks.py). The full table takes a minute or more:
`pytest -m "slow and dist" tests/engine/distributed/test_elastic.py`.
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

RANKS = Path(__file__).with_name("elastic_ranks.py")
SECONDS = 280
DDP, FSDP2 = {"strategy": "ddp"}, {"strategy": "fsdp2"}


def case(layout: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {"layout": layout, "optimizer": "adamw", "micro": 3, "bf16": False, "model": "gpt2", **others}


def run(ranks: int, table: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Trains a table on so many ranks and on one; the outcomes of both."""
    (directory / "cases.json").write_text(json.dumps(table))
    store, path, out = (str(directory / name) for name in ("store", "cases.json", "out.json"))
    started = [
        subprocess.Popen(
            [sys.executable, str(RANKS), store, str(rank), str(ranks), path, out],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
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
    return json.loads(Path(out).read_text())


def check(found: dict[str, Any], table: dict[str, Any]) -> None:
    assert list(found) == list(table)
    for name, outcome in found.items():
        assert outcome["ranks"] == outcome["alone"], name


@pytest.mark.dist
def test_two_ranks_give_the_bits_of_one(tmp_path):
    """DDP and FSDP2, four micro-batches a rank, dropout, uneven labels: losses, norms, weights and optimizer state."""
    table = {"ddp": case(DDP), "fsdp2": case(FSDP2)}

    found = run(2, table, tmp_path)

    check(found, table)


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_any_number_of_ranks_gives_the_bits_of_one(tmp_path, ranks, optimizer):
    """Layouts x size of the micro-batches x precision x model."""
    table = {
        f"{layout}, micro-batches of {micro}, {'bf16' if bf16 else 'fp32'}, {model}": case(
            layout, optimizer=optimizer, micro=micro, bf16=bf16, model=model
        )
        for layout, micro, bf16, model in itertools.product((DDP, FSDP2), (1, 2), (False, True), ("gpt2", "llama"))
    }
    table["not resharded"] = case({**FSDP2, "reshard_after_forward": False}, optimizer=optimizer, micro=2)

    found = run(ranks, table, tmp_path)

    check(found, table)
