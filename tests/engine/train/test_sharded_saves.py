"""What the ranks of a run write in parts is what rank 0 would write whole, in every layout.

All cases of a number of ranks share one group of processes (shard_ranks.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import HuggingFaceStorageReader, load

from automodel_cli.engine.checkpoint.inspect import inspect
from automodel_cli.engine.checkpoint.load_checkpoint import load as load_checkpoint

RANKS = Path(__file__).with_name("shard_ranks.py")
SECONDS = 200
LAYOUTS: dict[int, dict[str, dict[str, Any]]] = {
    2: {"fsdp2": {}, "tp": {"tp_size": 2}, "tp+sequence": {"tp_size": 2, "sequence_parallel": True}},
    3: {"fsdp2": {}},
    4: {
        "fsdp2": {},
        "hsdp": {"dp_replicate_size": 2},
        "fsdp2 x tp": {"tp_size": 2},
        "fsdp2 x cp": {"cp_size": 2},
        "hsdp x cp": {"cp_size": 2, "dp_replicate_size": 2},
        "cp x tp": {"cp_size": 2, "tp_size": 2, "dp_size": 1},
        "ddp x tp": {"strategy": "ddp", "tp_size": 2},
        "tp": {"tp_size": 4},
    },
}


def cases(ranks: int, models: list[str], optimizers: list[str]) -> dict[str, Any]:
    return {
        f"{name}, {model}, {optimizer}": {"layout": layout, "model": model, "optimizer": optimizer}
        for name, layout in LAYOUTS[ranks].items()
        for model in models
        for optimizer in optimizers
        if model != "llama" or not layout.get("sequence_parallel")  # its plan has none
    }


def run(ranks: int, table: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Saves a table on so many ranks, and gives rank 0's comparison."""
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
    for name, facts in found.items():
        sizes = facts.pop("bytes by rank")
        assert all(facts.values()), (name, facts)
        # Headers and what cannot be divided are all that makes a difference.
        assert max(sizes) < 1.7 * min(sizes), (name, sizes)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The saves of two ranks: case0 is FSDP2, case1 is tensor-parallel."""
    directory = tmp_path_factory.mktemp("two")
    table = cases(2, ["gpt2"], ["adamw"])
    check(run(2, table, directory), table)
    return directory


@pytest.mark.dist
@pytest.mark.parametrize("case", ["case0", "case1"])
def test_torch_reads_the_parts_as_whole_tensors(two_ranks: Path, case: str) -> None:
    """`HuggingFaceStorageReader`, which knows nothing of us, gives the weights that rank 0 wrote whole."""
    expected = dict(load_checkpoint(two_ranks / case / "every" / "step_000001").model_tensors)
    found = {name: torch.full_like(tensor, torch.nan) for name, tensor in expected.items()}

    load(found, storage_reader=HuggingFaceStorageReader(str(two_ranks / case / "False" / "step_000001" / "model")))

    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.dist
def test_what_each_rank_wrote_is_told(two_ranks: Path) -> None:
    """Their parts make up weights and optimizer; a checkpoint that rank 0 wrote has no parts."""
    in_parts, whole = (inspect(two_ranks / "case0" / name / "step_000001") for name in ("False", "every"))

    assert list(in_parts.rank_bytes) == [0, 1]
    tensors = [size for name, size in in_parts.files.items() if name.startswith(("model/model", "optim/"))]
    assert sum(in_parts.rank_bytes.values()) == sum(tensors)
    assert whole.rank_bytes == {}


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("ranks", list(LAYOUTS))
def test_every_layout_saves_the_same_in_parts_as_whole(tmp_path: Path, ranks: int) -> None:
    """The whole table: layouts x models x optimizers; every rank writes about as much."""
    table = cases(ranks, ["gpt2", "gpt2 without biases", "llama"], ["adamw", "muon"])

    found = run(ranks, table, tmp_path)

    check(found, table)
