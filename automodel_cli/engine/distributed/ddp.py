"""Data parallelism in which every rank holds the whole model: each gradient is summed exactly once per step.

Not `torch.nn.parallel.DistributedDataParallel`, for three reasons. It rebuilds its buckets after the first step, so
with three ranks or more a resumed run would add in another order than a run that was never stopped, and end with other
bits; here the buckets are fixed. It acts only in calls of the wrapper's `forward`; here a loss may use any method of
the model. And it divides by the number of ranks, while the engine's loss is a sum already.

With `deterministic: elastic`, gradients are summed in the order of the micro-batches instead, so that their bits do not
depend on the ranks. Rank r of R computes the micro-batches r, R + r, 2 R + r, ... of a step (`interleaved` of the
loader). After each of them the ranks exchange their gradients, and each rank adds the received ones to its part of the
sum, rank by rank: micro-batch 0, 1, 2 and so on, one addition each, in the type of the gradient. The backward passes of
a process alone add in the same order. Slow by design: all gradients travel once per micro-batch, and nothing of it
overlaps with the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from automodel_cli.engine.distributed.sharded_tensors import local, redistribute_gradient

# Large enough to use the network well, small enough that the first messages leave early in the backward pass.
BUCKET_BYTES = 25 * 2**20


@dataclass(frozen=True)
class DDPManager:
    """The keys of the `distributed` section for this layout.

    Args:
        dp_size: Data-parallel ranks; None is what remains of the world.
        tp_size: Tensor-parallel ranks.
        cp_size: Context-parallel ranks.
        sequence_parallel: Split what is between the matrices along the sequence too.
        activation_checkpointing: Recompute activations in the backward pass.
    """

    dp_size: int | None = None
    tp_size: int = 1
    cp_size: int = 1
    sequence_parallel: bool = False
    activation_checkpointing: bool = False


class ReplicaSync:
    """Sums the gradients of equal parameters over a group, while the backward pass is still running.

    Args:
        parameters: The same on every rank, in the same order; sharded ones are summed shard by shard.
        group: The ranks that hold the same parameters.
        bucket_bytes: Gradients that travel in one message.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], group: dist.ProcessGroup, bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        self._group = group
        # The backward pass comes to the last parameters first.
        self._buckets = buckets_of([p for p in parameters if p.requires_grad][::-1], bucket_bytes)
        self._bucket_of = {parameter: index for index, bucket in enumerate(self._buckets) for parameter in bucket}
        self._missing: list[int] = []
        self._sent: list[tuple[torch.Tensor, dist.Work]] = []
        for parameter in self._bucket_of:
            parameter.register_post_accumulate_grad_hook(self._on_gradient)

    def arm(self) -> None:
        """Makes the next backward pass, the last of the step, sum its gradients.

        Messages of a pass that an exception has ended are dropped.
        """
        for _, work in self._sent:
            work.wait()
        self._sent = []
        self._missing = [len(bucket) for bucket in self._buckets]

    def finish(self) -> None:
        """Waits until every gradient is the sum over all ranks."""
        while len(self._sent) < len(self._buckets):
            self._send_next()
        for bucket, (flat, work) in zip(self._buckets, self._sent, strict=True):
            work.wait()
            unflatten(bucket, flat)
        self._missing, self._sent = [], []

    def _on_gradient(self, parameter: torch.Tensor) -> None:
        if not self._missing:
            return
        self._missing[self._bucket_of[parameter]] -= 1  # type: ignore[index]  # hooks are set on parameters alone
        # In the order of the buckets, whatever the order of the gradients: all ranks must send in one order.
        while len(self._sent) < len(self._buckets) and self._missing[len(self._sent)] == 0:
            self._send_next()

    def _send_next(self) -> None:
        flat = flatten(self._buckets[len(self._sent)])
        work = dist.all_reduce(flat, group=self._group, async_op=True)
        self._sent.append((flat, work))


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


def buckets_of(parameters: list[nn.Parameter], bucket_bytes: int) -> list[list[nn.Parameter]]:
    """Groups of consecutive parameters of one type, each of about `bucket_bytes`."""
    buckets: list[list[nn.Parameter]] = []
    filled, dtype = 0, None
    for parameter in parameters:
        size = local(parameter).numel() * parameter.element_size()
        if not buckets or parameter.dtype != dtype or filled + size > bucket_bytes:
            buckets.append([])
            filled, dtype = 0, parameter.dtype
        buckets[-1].append(parameter)
        filled += size
    return buckets


def flatten(bucket: list[nn.Parameter]) -> torch.Tensor:
    """All gradients in one tensor; behind them, for each parameter, whether this rank has one."""
    parts = []
    for parameter in bucket:
        redistribute_gradient(parameter)
        grad = parameter.grad
        parts.append((torch.zeros_like(local(parameter)) if grad is None else local(grad)).reshape(-1))
    flags = [float(parameter.grad is not None) for parameter in bucket]
    return torch.cat([*parts, torch.tensor(flags, dtype=parts[0].dtype, device=parts[0].device)])


def unflatten(bucket: list[nn.Parameter], flat: torch.Tensor) -> None:
    """The inverse of `flatten`; a parameter without a gradient on any rank keeps none."""
    sizes = [local(parameter).numel() for parameter in bucket]
    *parts, flags = flat.split([*sizes, len(bucket)])
    has_grad = [parameter.grad is not None for parameter in bucket]
    if not all(has_grad):  # asking the device costs a synchronisation, so only where it is needed
        has_grad = (flags > 0).tolist()
    for parameter, part, has_one in zip(bucket, parts, has_grad, strict=True):
        if not has_one:
            continue  # no rank has used it: an optimizer must not decay it either
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        local(parameter.grad).copy_(part.view_as(local(parameter.grad)))


def add_in_order(total: torch.Tensor | None, gradients: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The part of the running sum that this rank holds, with one micro-batch of every rank added, rank by rank.

    Args:
        total: This rank's part so far, (N / R,); None before the first micro-batch. It is not changed.
        gradients: Gradients of this rank's micro-batch, (N,): one part for each rank.
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
