"""Data parallelism in which the model is sharded over the ranks (FSDP2), or over groups of them (HSDP).

Every transformer block is one unit that is gathered for use and freed afterwards; the rest of the model is one more
unit. Gradients are summed, not averaged: the engine's loss is divided by all tokens of the step already.
With `deterministic: elastic` they are summed in the order of the micro-batches, as `ddp.py` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from automodel_cli.engine.config.sections import DistributedSection
from automodel_cli.engine.distributed.ddp import add_in_order
from automodel_cli.engine.distributed.module_tree import transformer_blocks
from automodel_cli.errors import ConfigError


@dataclass(frozen=True)
class FSDP2Manager:
    """The keys of the `distributed` section for this layout.

    Args:
        dp_size: Data-parallel ranks; None is what remains of the world.
        dp_replicate_size: Groups that each hold the whole model; None is one.
        tp_size: Tensor-parallel ranks.
        cp_size: Context-parallel ranks.
        sequence_parallel: Split what is between the matrices along the sequence too.
        reshard_after_forward: Free a block's gathered weights until its backward pass.
        mp_policy: `bf16` gathers and computes with bf16 weights.
        offload_policy: `cpu` keeps weights and optimizer in the host's memory.
        defer_fsdp_grad_sync: Sum gradients over ranks once per step, not once per micro-batch.
        activation_checkpointing: Recompute activations in the backward pass.
    """

    dp_size: int | None = None
    dp_replicate_size: int | None = None
    tp_size: int = 1
    cp_size: int = 1
    sequence_parallel: bool = False
    reshard_after_forward: bool = True
    mp_policy: str | None = None
    offload_policy: str | None = None
    defer_fsdp_grad_sync: bool = True
    activation_checkpointing: bool = False


def shard(model: nn.Module, mesh: DeviceMesh, section: DistributedSection) -> None:
    """Shards a model in place.

    Args:
        model: On its device, with the same weights on every rank.
        mesh: One dimension to shard over, or two: replicas, then shards.
        section: The policies.
    """
    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    mp_policy = mixed if section.mp_policy == "bf16" else MixedPrecisionPolicy()
    # Pinned pages make copies to a GPU asynchronous; on a machine without a GPU torch raises when asked for them.
    offload = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if section.offload_policy else OffloadPolicy()
    for block in transformer_blocks(model):
        fully_shard(
            block,
            mesh=mesh,
            reshard_after_forward=section.reshard_after_forward,
            mp_policy=mp_policy,
            offload_policy=offload,
        )
    # The rest is used at the beginning and at the end of a pass: freeing it in between gains nothing.
    fully_shard(model, mesh=mesh, reshard_after_forward=False, mp_policy=mp_policy, offload_policy=offload)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


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
