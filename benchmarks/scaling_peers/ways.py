"""One step of the engine and one of a bare torch loop on the same ranks, and what a rank sends in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from scaling_peers.communication import ring_bytes
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode

from automodel_cli.engine.config.sections import DistributedSection
from automodel_cli.engine.distributed.distributed_model import parallelised
from automodel_cli.engine.distributed.module_tree import transformer_blocks
from automodel_cli.engine.distributed.rank_group import RankGroup
from automodel_cli.engine.models.gpt2 import build_gpt2_model
from automodel_cli.engine.optim.optimizer import build_optimizer
from automodel_cli.engine.train.objective import objective_of
from automodel_cli.engine.train.step import label_tokens, queue_step

# The model, by device.
SHAPES: dict[str, dict[str, Any]] = {
    "cpu": {"n_layer": 4, "n_embd": 128, "n_head": 4, "n_positions": 128, "vocab_size": 2048},
    "cuda": {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024, "vocab_size": 50_304},
}
# How often a ring sends a tensor, by the name of the collective; and which of its tensors is the whole one.
_PASSES = {"allreduce": 2, "all_reduce": 2, "allgather": 1, "all_gather": 1, "reduce_scatter": 1, "alltoall": 1}


class Recorder(TorchDispatchMode):
    """Counts what this rank sends in the collectives of tensors on `device`, by kind, as rings send it."""

    def __init__(self, device: torch.device, ranks: int) -> None:
        super().__init__()
        self.sent = {"gathered": 0.0, "reduced": 0.0}
        self._device, self._ranks = device, ranks

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        namespace, _, name = func.name().partition("::")
        passes = next((count for kind, count in _PASSES.items() if kind in name), 0)
        if namespace in ("c10d", "_c10d_functional") and passes:
            found = [leaf for leaf in _leaves((args, result)) if leaf.device.type == self._device.type]
            group = next((arg for arg in args if isinstance(arg, torch.ScriptObject)), None)
            size = dist.ProcessGroup.unbox(group).size() if group is not None else self._ranks
            payload = max((leaf.numel() * leaf.element_size() for leaf in found), default=0)
            payload *= size if name == "allgather_" else 1  # of this one the whole is a list of parts
            kind = "reduced" if "reduce" in name else "gathered"
            self.sent[kind] += passes * ring_bytes(payload, size)
        return result


def _leaves(node: Any) -> list[torch.Tensor]:
    if isinstance(node, torch.Tensor):
        return [node]
    return [leaf for part in node for leaf in _leaves(part)] if isinstance(node, list | tuple) else []


Step = Callable[[int], float]


def build(device: torch.device) -> nn.Module:
    torch.manual_seed(1)
    return build_gpt2_model(**SHAPES[device.type]).to(device)


def engine_step(
    group: RankGroup, layout: dict[str, Any], data: Callable[[int], list[dict[str, Any]]], device: Any
) -> Step:
    """A step as the loop of `amcli pretrain` does it, reading and reporting apart."""
    model = build(device)
    objective = objective_of(None, model, tp_size=group.degrees.tp)
    parallel = parallelised(model, group, DistributedSection(**layout), device)
    optimizer = build_optimizer(torch.optim.AdamW, {"lr": 1e-3}, model)
    dtype = torch.bfloat16 if device.type == "cuda" else None

    def step(number: int) -> float:
        batches = data(number)
        batches = [group.part_of_sequence(batch) for batch in batches]
        num_tokens = group.all_reduce_ints(group.counted_once(label_tokens(batches)), 0, 0, 0)[0]
        settings = {"device": device, "lr": 1e-3, "max_norm": 1.0, "autocast_dtype": dtype}
        numbers = queue_step(parallel, objective, optimizer, batches, num_label_tokens=num_tokens, **settings)
        return numbers.read()[0]

    return step


def bare_step(ranks: int, layout: dict[str, Any], data: Callable[[int], list[dict[str, Any]]], device: Any) -> Step:
    """The same by hand, with torch's own wrappers."""
    model = build(device)
    objective = objective_of(None, model)
    wrapped: nn.Module = model
    if ranks > 1 and layout.get("strategy") == "ddp":
        wrapped = nn.parallel.DistributedDataParallel(model)
    elif ranks > 1:
        replicas = layout.get("dp_replicate_size", 1)
        sizes = (replicas, ranks // replicas) if replicas > 1 else (ranks,)
        mesh = init_device_mesh(device.type, sizes, mesh_dim_names=("replicate", "shard")[-len(sizes) :])
        for block in transformer_blocks(model):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh, reshard_after_forward=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    dtype = torch.bfloat16 if device.type == "cuda" else None

    def step(number: int) -> float:
        batches = data(number)
        tokens, total = label_tokens(batches), torch.zeros((), device=device)
        for index, batch in enumerate(batches):
            is_last = index == len(batches) - 1
            if isinstance(wrapped, nn.parallel.DistributedDataParallel):
                wrapped.require_backward_grad_sync = is_last
            elif ranks > 1:
                wrapped.set_requires_gradient_sync(is_last)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                loss = objective(wrapped, {name: torch.as_tensor(x).to(device) for name, x in batch.items()}, tokens)
            loss.backward()
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if ranks > 1:
            dist.all_reduce(total)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(total) / ranks + 0 * float(norm)

    return step
