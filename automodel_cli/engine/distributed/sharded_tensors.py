"""This rank's part of every tensor: how it is gathered, written into a checkpoint and read from one.

A small tensor that several ranks hold is written by one of them, a large one by all of them in equal parts: so every
rank writes about as much. This follows from the layout alone, without messages. Tensors are gathered one at a time, so
that no rank ever holds two copies of a model.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard

from automodel_cli.engine.distributed.region import Part, Region, TensorSource, rows_in_model_order

# Smaller tensors are written whole by one rank: every piece costs a line in a header.
_WORTH_DIVIDING = 2**16  # elements


def own_region(tensor: torch.Tensor) -> Region:
    """What this rank holds of a tensor.

    From the last dimension of the mesh to the first, as FSDP2 shards the parts that tensor parallelism has made.
    """
    region = Region.whole(tensor.shape)
    if isinstance(tensor, DTensor):
        mesh = tensor.device_mesh
        for dimension in reversed(range(mesh.ndim)):
            axis = _axis(tensor.placements[dimension])
            if axis is not None:
                region = region.chunk(axis, mesh.get_local_rank(dimension), mesh.size(dimension))
    return region


def own_parts(
    tensors: Mapping[str, torch.Tensor], mesh: DeviceMesh, rank: int, reordered: frozenset[str], owners: bool = False
) -> list[Part]:
    """What this rank writes of some tensors, in the order of the model.

    Every element of every tensor is in the part of exactly one rank, if all ranks pass the same names.

    Args:
        tensors: Whole, or sharded over a part of `mesh`.
        mesh: All ranks of the run.
        rank: This one.
        reordered: Names of parameters whose rows are in the order of the tensor-parallel ranks.
        owners: Whether the names are those of an optimizer's state, `<parameter>.<state>`.
    """
    found = []
    for number, (name, tensor) in enumerate(tensors.items()):
        held = own_region(tensor)
        if tensor.numel() == 0:
            mine = held if rank == 0 else None  # all ranks hold it, and a checkpoint has it once
        else:
            mine = _share(held, number, *_replica(tensor, mesh, rank))
        if mine is None:
            continue
        held_content = local(tensor).detach()
        content = held_content[mine.within(held)] if tensor.dim() else held_content
        owner = name.rpartition(".")[0] if owners else name
        if owner not in reordered or not tensor.dim():
            found.append(Part(name, mine, content))
            continue
        begin = 0
        for region in rows_in_model_order(mine, tensor.shape[0], _tensor_parallel_ranks(mesh)):
            rows = region.sizes[0]
            found.append(Part(name, region, content[begin : begin + rows]))
            begin += rows
    return found


def read_local(source: TensorSource, name: str, model: torch.Tensor, reordered_over: int = 1) -> torch.Tensor:
    """Reads this rank's part, and nothing else, of a stored tensor that is sharded as `model` is.

    Args:
        source: Holds the whole tensor, of the shape of `model`, in the order of the model.
        name: Name of the stored tensor.
        model: Has the wanted layout; its type does not matter.
        reordered_over: Number of tensor-parallel ranks, if the rows of `model` are in their order.
    """
    mine = own_region(model)
    places = [mine]
    if reordered_over > 1 and mine.num_elements:
        places = rows_in_model_order(mine, model.shape[0], reordered_over)
    read = [source.region(name, place) for place in places]
    return torch.cat(read) if len(read) > 1 else read[0]


def wrapped(part: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """This rank's part as a sharded tensor with the layout of `model`."""
    if not isinstance(model, DTensor):
        return part
    part = part.contiguous().to(model.to_local().device)
    return DTensor.from_local(
        part, model.device_mesh, model.placements, run_check=False, shape=model.shape, stride=model.stride()
    )


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor. Collective: every rank that holds a part must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(source: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """A whole tensor, sharded as `model` is if it has its shape; of any type."""
    if not isinstance(model, DTensor) or source.shape != model.shape:
        return source
    return wrapped(own_part(source, model), model)


def own_part(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """This rank's part of a whole tensor under the layout of another."""
    return source[own_region(target).within(Region.whole(source.shape))]


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor; the tensor itself if it is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def redistribute_gradient(parameter: torch.Tensor) -> None:
    """Brings the gradient of a sharded parameter to the parameter's own layout; partial sums are summed."""
    grad = parameter.grad
    if isinstance(parameter, DTensor) and isinstance(grad, DTensor) and grad.placements != parameter.placements:
        parameter.grad = grad.redistribute(placements=parameter.placements)


def _tensor_parallel_ranks(mesh: DeviceMesh) -> int:
    return int(mesh.mesh.shape[-1])


def _axis(placement: Placement) -> int | None:
    """The dimension of a tensor that a placement splits; None for one that leaves it whole."""
    return placement.dim if isinstance(placement, (Shard, _StridedShard)) else None


def _replica(tensor: torch.Tensor, mesh: DeviceMesh, rank: int) -> tuple[int, int]:
    """This rank's number among those that hold the same part, and how many they are."""
    here = (mesh.mesh == rank).nonzero()[0]
    cut = torch.zeros_like(here, dtype=torch.bool)
    if isinstance(tensor, DTensor):
        own = tensor.device_mesh
        place = tuple(
            slice(None) if _axis(tensor.placements[dimension]) is not None else own.get_local_rank(dimension)
            for dimension in range(own.ndim)
        )
        for peer in own.mesh[place].reshape(-1).tolist():
            cut |= (mesh.mesh == peer).nonzero()[0] != here
    index, count = 0, 1
    for is_cut, own_place, size in zip(cut.tolist(), here.tolist(), mesh.mesh.shape, strict=True):
        if not is_cut:
            index, count = index * size + own_place, count * size
    return index, count


def _share(held: Region, number: int, replica: int, replicas: int) -> Region | None:
    """The part of a region that one of the ranks that hold it writes; None for nothing."""
    if held.num_elements >= _WORTH_DIVIDING:
        mine = held.chunk(0, replica, replicas)
    else:
        if number % replicas != replica:
            return None
        mine = held
    return mine if mine.num_elements else None
