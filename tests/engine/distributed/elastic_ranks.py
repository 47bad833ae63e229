"""One rank of the test of elastic runs: trains every case of a table, and on rank 0 alone, too, in one process.

Started by test_elastic.py as `python elastic_ranks.py STORE RANK WORLD CASES OUT`; not a test itself.
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
from parity_ranks import CPU, SAMPLES, STEPS, T, V, batch_of, build, optimizer_of
from torch import nn

from automodel_cli.engine.config.sections import DistributedSection
from automodel_cli.engine.data.loader import own_places
from automodel_cli.engine.distributed.distributed_group import distributed_group
from automodel_cli.engine.distributed.distributed_model import parallelised
from automodel_cli.engine.distributed.environment import RankPlace
from automodel_cli.engine.distributed.rank_group import SOLO, RankGroup
from automodel_cli.engine.models.gpt2 import build_gpt2_model
from automodel_cli.engine.optim.optimizer import avoid_fused_kernels, optimizer_state_tensors
from automodel_cli.engine.train.elastic import Elastic
from automodel_cli.engine.train.objective import objective_of
from automodel_cli.engine.train.step import label_tokens, queue_step


def build_odd(kind: str) -> nn.Module:
    """Of sizes that no number of ranks divides; GPT-2 with random numbers in every pass."""
    if kind != "gpt2":
        return build(kind)
    torch.manual_seed(3)
    return build_gpt2_model(vocab_size=V, n_positions=T, n_embd=30, n_layer=2, n_head=5, dropout=0.1)


def trained(case: dict[str, Any], group: RankGroup) -> dict[str, Any]:
    """Loss and norm of each step, and hashes of the whole weights and of the optimizer's state."""
    model = build_odd(case["model"])
    objective = objective_of(None, model)
    parallel = parallelised(model, group, DistributedSection(**case["layout"]), CPU, is_elastic=True)
    optimizer = optimizer_of(case["optimizer"], model)
    avoid_fused_kernels(optimizer)
    dp, rank = group.degrees.dp, group.dp_rank
    micro = case["micro"]
    elastic = Elastic(5, SAMPLES // micro, parallel)
    places = own_places(SAMPLES, micro, rank, dp, interleaved=True).reshape(-1, micro)
    curve = []
    for step in range(STEPS):
        whole = batch_of(step, 0, SAMPLES, uneven=True)
        numbers = queue_step(
            parallel,
            objective,
            optimizer,
            [{name: values[block] for name, values in whole.items()} for block in places],
            device=CPU,
            lr=0.02 if case["optimizer"] == "muon" else 1e-3,
            max_norm=1.0,
            autocast_dtype=torch.bfloat16 if case["bf16"] else None,
            num_label_tokens=label_tokens([whole]),
            elastic=elastic.at(step),
        )
        curve.append(numbers.read())
    state = optimizer_state_tensors(optimizer, model)
    weights, state = parallel.whole_model(), parallel.whole_state(state)
    return {"curve": curve, "weights": digest(weights), "state": digest(state)}


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of all tensors by name."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def main() -> None:
    store, rank, world, cases, out = sys.argv[1:]
    torch.set_num_threads(1)
    place = RankPlace(int(rank), int(world), int(rank), int(world), launcher="torchrun")
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, int(world)),
        rank=int(rank),
        world_size=int(world),
        timeout=timedelta(seconds=60),
    )
    results = {}
    for name, case in json.loads(Path(cases).read_text()).items():
        group = distributed_group(place, DistributedSection(**case["layout"]), CPU)
        results[name] = {"ranks": trained(case, group)}
        if place.rank == 0:
            results[name]["alone"] = trained(case, SOLO)
    if place.rank == 0:
        Path(out).write_text(json.dumps(results))
    os._exit(0)  # a case that failed may have left a peer in a collective


if __name__ == "__main__":
    main()
