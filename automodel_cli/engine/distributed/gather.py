"""Whole tensors from sharded ones and back, one tensor at a time, so that no rank ever holds two copies of a model.

Checkpoints hold whole tensors: a run continues on any number of ranks and in any layout.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.placement_types import Placement

from automodel_cli.engine.distributed.tensor_parallel import rows_by_part, rows_by_rank

Turn = Callable[[str, torch.Tensor], torch.Tensor]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor; every rank that holds a part of it must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def fill(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copies a whole tensor into one that may be sharded: every rank keeps its own part."""
    if not isinstance(target, DTensor):
        target.copy_(source)
        return
    target.to_local().copy_(_own_part(source, target))


def like(source: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """A whole tensor, sharded as `model` is if it has its shape; of any type."""
    if not isinstance(model, DTensor) or source.shape != model.shape:
        return source
    part = _own_part(source, model).contiguous().to(model.to_local().device)
    return DTensor.from_local(
        part, model.device_mesh, model.placements, run_check=False, shape=model.shape, stride=model.stride()
    )


def rows_in_model_order(names: frozenset[str], num_ranks: int) -> Turn:
    """A function that puts rows back into the order of the model, for parameters that were reordered."""
    return lambda name, tensor: rows_by_part(tensor, num_ranks).contiguous() if name in names else tensor


def rows_in_rank_order(names: frozenset[str], num_ranks: int) -> Turn:
    """The inverse of `rows_in_model_order`."""
    return lambda name, tensor: rows_by_rank(tensor, num_ranks).contiguous() if name in names else tensor


def _own_part(source: torch.Tensor, target: DTensor) -> torch.Tensor:
    """This rank's part of a whole tensor under the layout of another.

    From the last dimension of the mesh to the first: a tensor-parallel part is sharded further, not the other way.
    """
    part, mesh = source, target.device_mesh
    for dimension in reversed(range(mesh.ndim)):
        placement: Placement = target.placements[dimension]
        if isinstance(placement, Replicate):
            continue
        axis = placement.dim  # type: ignore[attr-defined]  # every other placement of a parameter is a shard
        chunks = part.chunk(mesh.size(dimension), dim=axis)
        rank = mesh.get_local_rank(dimension)
        part = chunks[rank] if rank < len(chunks) else part.narrow(axis, 0, 0)
    return part
