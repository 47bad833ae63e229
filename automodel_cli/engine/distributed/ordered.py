"""Sums of gradients over ranks in the order of the micro-batches, so that their bits do not depend on the ranks.

Rank r of R computes the micro-batches r, R + r, 2 R + r, ... of a step (`interleaved` of the loader). After each of
them the ranks exchange their gradients, and each rank adds the received ones to its part of the sum, rank by rank:
micro-batch 0, 1, 2 and so on, one addition each, in the type of the gradient. The backward passes of a process alone
add in the same order. A sum of other terms or in another order is refused.

Slow by design: all gradients travel once per micro-batch, and nothing of it overlaps with the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

from automodel_cli.engine.distributed.ddp import BUCKET_BYTES, buckets_of, flatten, unflatten
from automodel_cli.errors import ConfigError


def add_in_order(total: torch.Tensor | None, gradients: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The part of the running sum that this rank holds, with one micro-batch of every rank added, rank by rank.

    Args:
        total: This rank's part so far, (N / R,); None before the first micro-batch. It is not changed.
        gradients: Of this rank's micro-batch, (N,): one part for each rank.
        group: The R ranks, in the order of their micro-batches.
    """
    received = torch.empty_like(gradients)
    # As bytes: not every backend exchanges every type.
    dist.all_to_all_single(received.view(torch.uint8), gradients.contiguous().view(torch.uint8), group=group)
    first, *rest = received.view(group.size(), -1).unbind()
    total = first.clone() if total is None else total + first
    for part in rest:
        total += part
    return total


class OrderedReplicas:
    """The gradients of a model that every rank holds whole.

    Args:
        parameters: The same on every rank, in the same order.
        group: The ranks, in the order of their micro-batches.
        bucket_bytes: Gradients that travel in one message.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], group: dist.ProcessGroup, bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        self._group = group
        self._buckets = buckets_of([parameter for parameter in parameters if parameter.requires_grad], bucket_bytes)
        self._totals: list[torch.Tensor | None] = [None] * len(self._buckets)

    @torch.no_grad()
    def take(self, *, is_last: bool) -> None:
        """Adds the gradients of one micro-batch of every rank; with the last of a step, sets the sums as gradients."""
        for index, bucket in enumerate(self._buckets):
            flat = flatten(bucket)
            num_elements = flat.numel()
            flat = nn.functional.pad(flat, (0, -num_elements % self._group.size()))
            total = self._totals[index] = add_in_order(self._totals[index], flat, self._group)
            if is_last:
                dist.all_gather_into_tensor(flat, total, group=self._group)
                unflatten(bucket, flat[:num_elements])
                self._totals[index] = None
            else:
                for parameter in bucket:
                    parameter.grad = None


class OrderedShards:
    """The gradients of a model that FSDP2 shards over more than one rank.

    Args:
        model: Sharded; its reduce-scatter is replaced, in place.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = list(model.parameters())
        self._sums: list[_OrderedReduceScatter] = []
        for module in model.modules():
            if isinstance(module, FSDPModule):
                self._sums.append(_OrderedReduceScatter())
                module.set_custom_reduce_scatter(self._sums[-1])  # type: ignore[arg-type]  # has no public type

    def take(self, *, is_last: bool) -> None:
        """After a backward pass: removes the sum so far from the gradients, unless it was the last of the step."""
        for each in self._sums:
            each.end_micro_batch(is_last=is_last)
        if not is_last:
            for parameter in self._parameters:
                parameter.grad = None  # FSDP2 would add the next running sum to this one


class _OrderedReduceScatter:
    """Replaces FSDP2's sum of one micro-batch over the ranks by the running sum of the step."""

    def __init__(self) -> None:
        self._total: torch.Tensor | None = None
        self._calls = 0

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Memory for what is sent or received."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: object,
        async_op: bool = False,
    ) -> None:
        """FSDP2's signature: `input_tensor` has one part for each rank, `output_tensor` is this rank's."""
        self._calls += 1
        if self._calls > 1 or (self._total is not None and self._total.numel() != output_tensor.numel()):
            raise ConfigError(
                "deterministic: elastic needs the same parameters to be used once in every micro-batch, but a part of "
                "the model that is sharded as one got gradients of others, or twice",
                help="strategy: ddp takes any model",
            )
        self._total = add_in_order(self._total, input_tensor, group)
        output_tensor.copy_(self._total)

    def end_micro_batch(self, *, is_last: bool) -> None:
        """Prepares for the next micro-batch, and after the last one for the next step."""
        self._calls = 0
        if is_last:
            self._total = None
