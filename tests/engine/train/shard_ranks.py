"""One rank of the test of sharded saves: saves every case in parts and whole, and compares what is read back.

Started by test_sharded_saves.py as `python shard_ranks.py STORE RANK WORLD CASES OUT`; not a test itself.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from automodel_cli.engine.checkpoint.load_checkpoint import load
from automodel_cli.engine.checkpoint.read_tensors import LazyTensors
from automodel_cli.engine.checkpoint.save import finish
from automodel_cli.engine.checkpoint.snapshot import TrainState
from automodel_cli.engine.config.sections import CheckpointSection, DistributedSection
from automodel_cli.engine.distributed import sharded_tensors
from automodel_cli.engine.distributed.distributed_group import DistributedGroup, distributed_group
from automodel_cli.engine.distributed.distributed_model import parallelised
from automodel_cli.engine.distributed.environment import RankPlace
from automodel_cli.engine.distributed.module_tree import move_to_meta
from automodel_cli.engine.models.gpt2 import build_gpt2_model
from automodel_cli.engine.optim import muon
from automodel_cli.engine.optim.optimizer import build_optimizer, optimizer_state_tensors
from automodel_cli.engine.train.checkpoint_content import LiveParts, begin_saving, broadcast_snapshot, load_optimizer
from automodel_cli.engine.train.device import place as placed
from automodel_cli.engine.train.objective import objective_of
from automodel_cli.engine.train.step import train_step
from automodel_cli.engine.train.weights import Weights

CPU = torch.device("cpu")
T, V = 8, 61  # a vocabulary that no number of ranks divides
# Small tensors are divided among those who hold them, too: there are no others in a test.
sharded_tensors._WORTH_DIVIDING = 64  # type: ignore[misc]


def build(kind: str) -> nn.Module:
    torch.manual_seed(3)
    if kind.startswith("gpt2"):
        sizes = {"vocab_size": V, "n_positions": T, "n_embd": 16, "n_layer": 1, "n_head": 4}
        return build_gpt2_model(**sizes, bias=kind == "gpt2")
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=V, num_key_value_heads=4, max_position_embeddings=T, **sizes))


def equal(ours: Any, theirs: Any) -> bool:
    """The same names, types and bits."""
    return set(ours) == set(theirs) and all(
        ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in theirs
    )


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def optimizer_of(case: dict[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    if case["optimizer"] == "muon":
        return build_optimizer(muon.MuonWithAdamW, {"lr": 0.02, "adamw_lr": 1e-3}, model)
    return build_optimizer(torch.optim.AdamW, {}, model)


def restored(
    case: dict[str, Any], group: DistributedGroup, directory: Path, *, everybody_sees: bool
) -> dict[str, torch.Tensor]:
    """This rank's part of the weights and the optimizer's state, as a run that goes on has them."""
    LazyTensors.can_be_read = lambda self: everybody_sees or group.rank == 0  # type: ignore[method-assign]
    snapshot = broadcast_snapshot(group, load(directory) if group.rank == 0 else None)
    model = build(case["model"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    # Half of the cases go on with a model that has no memory until it is on its ranks.
    content = move_to_meta(model) if everybody_sees else None
    weights = Weights(model, lambda: model, "", content, 0, group, snapshot, None)
    weights.read_whole(model)
    parallel = parallelised(model, group, DistributedSection(**case["layout"]), CPU)
    weights.fill(parallel)
    optimizer = optimizer_of(case, model)
    load_optimizer(optimizer, parallel, snapshot)
    return {**parallel.own_tensors(), **optimizer_state_tensors(optimizer, model)}


def saved(case: dict[str, Any], group: DistributedGroup, root: Path) -> dict[str, Any]:
    """Trains one step, saves twice, and says what differs; the comparison of files is rank 0's."""
    model = build(case["model"])
    objective = objective_of(None, model, tp_size=group.degrees.tp)
    parallel = parallelised(model, group, DistributedSection(**case["layout"]), CPU)
    optimizer = optimizer_of(case, model)
    ids = np.random.default_rng(0).integers(0, V, (1, T + 1))
    train_step(
        parallel,
        objective,
        optimizer,
        [group.part_of_sequence({"input_ids": ids[:, :-1], "labels": ids[:, 1:]})],
        device=CPU,
        lr=1e-3,
        max_norm=1.0,
        autocast_dtype=None,
        num_label_tokens=T * group.degrees.dp,
    )
    placement = placed("cpu", "fp32", 1)
    for kind_of_save in ("every", False):
        own = begin_saving(
            root / str(kind_of_save),
            LiveParts(TrainState(step=1), parallel, optimizer, "seed: 1\n"),
            CheckpointSection(save_consolidated=kind_of_save),
            lr=1e-3,
            placement=placement,
            is_best=False,
            is_last=True,
        )
        group.on_every_rank(lambda own=own: own and finish(own))
    whole, sharded = (load(root / name / "step_000001") for name in ("every", "False"))
    own = {**parallel.own_tensors(), **optimizer_state_tensors(optimizer, model)}
    differs = {}
    for sees in (True, False):
        read = restored(case, group, root / "False" / "step_000001", everybody_sees=sees)
        is_equal = equal({n: local(t) for n, t in read.items()}, {n: local(t) for n, t in own.items()})
        differs[sees] = group.any(not is_equal)
    sizes = [
        sum(path.stat().st_size for path in (root / "False").glob(f"step_000001/[mo]*/*_rank{rank}*.safetensors"))
        for rank in range(group.world_size)
    ]
    return {
        "weights": equal(sharded.model_tensors, whole.model_tensors),
        "state": equal(sharded.optim_tensors, whole.optim_tensors),
        "each rank reads its own": not differs[True],
        "rank 0 reads for all": not differs[False],
        "config": sharded.model_config == whole.model_config,
        "generators": len(sharded.peer_rng_tensors) + 1 == group.world_size,
        "bytes by rank": sizes,
    }


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
    for number, (name, case) in enumerate(json.loads(Path(cases).read_text()).items()):
        group = distributed_group(place, DistributedSection(**case["layout"]), CPU)
        results[name] = saved(case, group, Path(out).with_name(f"case{number}"))
    if place.rank == 0:
        Path(out).write_text(json.dumps(results))
    os._exit(0)  # a case that failed may have left a peer in a collective


if __name__ == "__main__":
    main()
