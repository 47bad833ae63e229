"""One rank of the tests of where weights come from; started as `python weights_ranks.py STORE RANK WORLD CASES OUT`.

For each case rank 0 writes the hashes of the whole model's tensors and of its own buffers, and the most bytes that a
rank's memory grew by; for a large model that number alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.load import load_config
from automodel_cli.engine.config.sections import DistributedSection
from automodel_cli.engine.distributed.distributed_group import distributed_group
from automodel_cli.engine.distributed.distributed_model import parallelised
from automodel_cli.engine.distributed.environment import RankPlace
from automodel_cli.engine.distributed.module_tree import all_tensors
from automodel_cli.engine.distributed.rank_group import SOLO, RankGroup
from automodel_cli.engine.train.device import place as placed
from automodel_cli.engine.train.weights import build_model

CPU = torch.device("cpu")


def hashes(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """SHA-256 of each tensor's bytes, types and shapes included."""
    return {
        name: hashlib.sha256(
            repr((tensor.dtype, tuple(tensor.shape))).encode() + tensor.detach().contiguous().numpy().tobytes()
        ).hexdigest()
        for name, tensor in tensors.items()
    }


def peak_bytes(*, reset: bool = False) -> int:
    """The most memory that this process had so far; with `reset`, which Linux alone knows, what it has now."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024


def started(config: Config, layout: dict[str, Any], group: RankGroup, *, is_large: bool) -> dict[str, Any]:
    """A new model on its ranks, as a run makes it."""
    torch.manual_seed(7)  # as a run does, for what a constructor draws
    before = peak_bytes(reset=is_large)
    model, weights = build_model(config, CPU, 7, group, None, None)
    placed("cpu", "fp32", 1).put(model)
    weights.read_whole(model)
    parallel = parallelised(model, group, DistributedSection(**layout), CPU)
    weights.fill(parallel)
    grown = peak_bytes() - before
    if is_large:
        return {"grown": grown}
    return {
        "weights": hashes(parallel.whole_model()),
        "buffers": hashes({name: all_tensors(model)[name] for name, _ in model.named_buffers()}),
        "words": weights.words,
        "grown": grown,
    }


def main() -> None:
    store, rank, world, cases, out = sys.argv[1:]
    torch.set_num_threads(1)
    place = RankPlace(int(rank), int(world), int(rank), int(world), launcher="torchrun")
    store_of_files = dist.FileStore(store, int(world))
    timeout = timedelta(seconds=60)
    dist.init_process_group("gloo", store=store_of_files, rank=int(rank), world_size=int(world), timeout=timeout)
    results = {}
    for name, case in json.loads(Path(cases).read_text()).items():
        config = load_config([Path(case["config"])])
        group: RankGroup = SOLO
        if case["layout"] is not None:
            group = distributed_group(place, DistributedSection(**case["layout"]), CPU)
        results[name] = started(config, case["layout"] or {}, group, is_large="large" in name)
        grown = torch.tensor(results[name]["grown"], dtype=torch.int64)
        dist.all_reduce(grown, op=dist.ReduceOp.MAX)
        results[name]["grown"] = int(grown)
    if place.rank == 0:
        Path(out).write_text(json.dumps(results))
    os._exit(0)  # a case that failed may have left a peer in a collective


if __name__ == "__main__":
    main()
