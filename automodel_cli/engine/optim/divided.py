"""Applies a function of whole matrices to sharded matrices: each rank computes its share of them.

The matrices of a bucket are assigned to the ranks of their shard group so that each has about the same work. One
exchange brings every matrix to its owner in bf16, one brings the results back. The owner computes what every rank
would compute from the gathered matrix, so the bits are the same; the work of a rank falls with the number of ranks.

Divided are tensors that one dimension of their mesh shards (FSDP2, HSDP, or tensor parallelism alone), and no others.

Method: Liu et al. 2025, "Muon is Scalable for LLM Training", gather whole matrices in a sharded optimizer; here with
one owner for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate, Shard

Item = TypeVar("Item")
# Whole matrices that one rank holds at a time, in bf16, with some copies while it iterates.
_ELEMENTS_OF_A_RANK = 2**24


def shard_group(tensor: torch.Tensor) -> dist.ProcessGroup | None:
    """The ranks that hold the parts of a tensor; None where it is whole, or no single group shards it."""
    if not isinstance(tensor, DTensor):
        return None
    mesh, placements = tensor.device_mesh, tensor.placements
    cut = [index for index, placement in enumerate(placements) if not isinstance(placement, Replicate)]
    if len(cut) != 1 or type(placements[cut[0]]) is not Shard or mesh.size(cut[0]) == 1:
        return None
    return mesh.get_group(cut[0])


def owners(shapes: Sequence[Sequence[int]], num_ranks: int) -> list[int]:
    """Assigns matrices to ranks: the largest first, each to the rank with the least work.

    >>> owners([(8, 4), (4, 4), (4, 4), (2, 8)], 2)
    [0, 1, 1, 0]
    """
    # Newton-Schulz multiplies (short, long) by (long, short), and (short, short) by both.
    costs = [math.prod(shape) * min(shape[-2:]) for shape in shapes]
    loads = [0] * num_ranks
    found = [0] * len(shapes)
    for index in sorted(range(len(shapes)), key=lambda index: -costs[index]):
        found[index] = loads.index(min(loads))
        loads[found[index]] += costs[index]
    return found


def buckets(items: Sequence[Item], num_elements: Callable[[Item], int], num_ranks: int) -> Iterator[list[Item]]:
    """Splits items into consecutive buckets, so that the whole matrices of a rank have a bounded size.

    >>> [len(bucket) for bucket in buckets([2**23] * 7, lambda elements: elements, 2)]
    [4, 3]
    """
    bucket: list[Item] = []
    size = 0
    for item in items:
        if bucket and size + num_elements(item) > num_ranks * _ELEMENTS_OF_A_RANK:
            yield bucket
            bucket, size = [], 0
        bucket.append(item)
        size += num_elements(item)
    if bucket:
        yield bucket


def of_whole(
    tensors: Sequence[DTensor], functions: Sequence[Callable[[torch.Tensor], torch.Tensor]], group: dist.ProcessGroup
) -> list[torch.Tensor]:
    """Results of a function of each whole tensor, sharded as the tensor is; each rank computes those that it owns.

    Args:
        tensors: Sharded over `group`, in the same order on all of its ranks.
        functions: Functions of whole matrices in bf16, to matrices of the same shape and type; one for each tensor.
        group: Result of `shard_group` for each of the tensors.
    """
    rank, num_ranks = dist.get_rank(group), group.size()
    parts = [tensor.to_local().bfloat16() for tensor in tensors]
    shapes = [_part_shapes(tensor, num_ranks) for tensor in tensors]
    owner = owners([tensor.shape for tensor in tensors], num_ranks)
    owned = [[index for index, of in enumerate(owner) if of == each] for each in range(num_ranks)]
    # Indexed by sending rank, then by matrix; the way back has the same shapes.
    gathered = [[shapes[index][sender] for index in owned[rank]] for sender in range(num_ranks)]
    kept = [[shapes[index][rank] for index in owned[other]] for other in range(num_ranks)]

    arrived = _exchange([[parts[index] for index in of] for of in owned], gathered, parts[0], group)
    results: list[tuple[torch.Tensor, ...]] = []
    for place, index in enumerate(owned[rank]):
        axis = _axis(tensors[index])
        whole = torch.cat([from_one[place] for from_one in arrived], dim=axis)
        sizes = [shape[axis] for shape in shapes[index]]
        results.append(functions[index](whole).split(sizes, dim=axis))
    returned = _exchange([[each[other] for each in results] for other in range(num_ranks)], kept, parts[0], group)

    found: dict[int, torch.Tensor] = {}
    for indices, locals_ in zip(owned, returned, strict=True):
        found |= {index: _like(local, tensors[index]) for index, local in zip(indices, locals_, strict=True)}
    return [found[index] for index in range(len(tensors))]


def _axis(tensor: DTensor) -> int:
    return next(placement.dim % tensor.dim() for placement in tensor.placements if isinstance(placement, Shard))


def _part_shapes(tensor: DTensor, num_ranks: int) -> list[torch.Size]:
    """Shape of each rank's part, as `torch.chunk` splits: the last parts may be smaller, or empty."""
    axis = _axis(tensor)
    length = tensor.shape[axis]
    rows = -(-length // num_ranks)
    sizes = (max(0, min(rows, length - rank * rows)) for rank in range(num_ranks))
    return [torch.Size([*tensor.shape[:axis], size, *tensor.shape[axis + 1 :]]) for size in sizes]


def _exchange(
    outgoing: Sequence[Sequence[torch.Tensor]],
    incoming: Sequence[Sequence[torch.Size]],
    like: torch.Tensor,
    group: dist.ProcessGroup,
) -> list[list[torch.Tensor]]:
    """Sends each rank some tensors in one collective; returns what each rank sent, in the shapes of `incoming`."""
    sent = [sum(tensor.numel() for tensor in to_one) for to_one in outgoing]
    received = [sum(shape.numel() for shape in from_one) for from_one in incoming]
    pieces = [tensor.reshape(-1) for to_one in outgoing for tensor in to_one]
    send = torch.cat(pieces) if pieces else like.new_empty(0)
    receive = like.new_empty(sum(received))
    width = like.element_size()
    # As bytes: not every backend exchanges every type.
    dist.all_to_all_single(
        receive.view(torch.uint8),
        send.view(torch.uint8),
        [count * width for count in received],
        [count * width for count in sent],
        group=group,
    )
    shapes = [shape for from_one in incoming for shape in from_one]
    ends = accumulate(shape.numel() for shape in shapes)
    flat = iter([receive[end - shape.numel() : end].view(shape) for shape, end in zip(shapes, ends, strict=True)])
    return [[next(flat) for _ in from_one] for from_one in incoming]


def _like(local: torch.Tensor, model: DTensor) -> torch.Tensor:
    return DTensor.from_local(
        local, model.device_mesh, model.placements, run_check=False, shape=model.shape, stride=model.stride()
    )
