"""Loss and gradient norm over all ranks, in one message, whatever layout each parameter has.

`torch.nn.utils.clip_grad_norm_` refuses a mix of whole and sharded parameters, and would count what tensor-parallel
ranks hold alike more than once. Here every rank adds up the squares of its own parts, each divided by the
number of ranks that hold the same part; the sum over all ranks is the square of the norm, exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.distributed.tensor import DTensor

from automodel_cli.engine.distributed.ddp import settle
from automodel_cli.engine.distributed.distributed_group import DistributedGroup
from automodel_cli.engine.distributed.sharded_tensors import local


def loss_and_norm(group: DistributedGroup, loss: torch.Tensor, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """The loss of the step and the norm of its whole gradient, as two fp64 numbers on the device.

    Args:
        group: All ranks of the run.
        loss: This rank's part of the loss; tensor-parallel peers have equal parts.
        parameters: Those with gradients; their gradients are settled in place.
    """
    with torch.no_grad():
        squares = torch.zeros((), dtype=torch.float64, device=group.device)
        used = [parameter for parameter in parameters if parameter.grad is not None]
        if used:
            norms = torch._foreach_norm([_settled(parameter) for parameter in used])
            copies = torch.tensor([_num_copies(group, parameter) for parameter in used], dtype=torch.float64)
            squares += (torch.stack(norms).double().square() / copies.to(norms[0].device)).sum().to(group.device)
        loss_sum, square_sum = group.all_reduce(torch.stack([group.counted_once(loss.detach().double()), squares]))
        return torch.stack([loss_sum, square_sum.sqrt()])


@torch.no_grad()
def scale_gradients(parameters: Sequence[torch.Tensor], factor: torch.Tensor) -> None:
    """Multiplies every gradient by a number that is on the device; what is on another device gets a copy."""
    for parameter in parameters:
        if parameter.grad is not None:
            grad = local(parameter.grad)
            grad.mul_(factor.to(grad.device, grad.dtype))


def _settled(parameter: torch.Tensor) -> torch.Tensor:
    settle(parameter)
    return local(parameter.grad)  # type: ignore[arg-type]  # only asked of parameters that have one


def _num_copies(group: DistributedGroup, parameter: torch.Tensor) -> int:
    """How many ranks hold the same part of this parameter."""
    if not isinstance(parameter, DTensor):
        return group.world_size
    parts = 1
    for size, placement in zip(parameter.device_mesh.shape, parameter.placements, strict=True):
        if not placement.is_replicate():
            parts *= size
    return group.world_size // parts
