"""The model of a run on several ranks, and what the training step must do differently because of it.

`torch.nn.utils.clip_grad_norm_` refuses a mix of whole and sharded parameters, and would count what tensor-parallel
ranks hold alike more than once. Here every rank adds up the squares of its own parts, each divided by the number of
ranks that hold the same part; the sum over all ranks is the square of the norm. It travels with the loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from automodel_cli.engine.config.parallel_layout import is_sharded
from automodel_cli.engine.config.sections import DistributedSection
from automodel_cli.engine.distributed import fsdp2
from automodel_cli.engine.distributed.context_parallel import AttentionOverRanks
from automodel_cli.engine.distributed.ddp import OrderedReplicas, ReplicaSync
from automodel_cli.engine.distributed.distributed_group import DistributedGroup
from automodel_cli.engine.distributed.fsdp2 import OrderedShards
from automodel_cli.engine.distributed.module_tree import all_tensors, is_meta, materialise
from automodel_cli.engine.distributed.parallel_model import ParallelModel
from automodel_cli.engine.distributed.rank_group import RankGroup
from automodel_cli.engine.distributed.region import Part, Region, TensorSource
from automodel_cli.engine.distributed.sharded_tensors import (
    local,
    own_part,
    own_parts,
    read_local,
    redistribute_gradient,
    sharded_like,
    whole,
    wrapped,
)
from automodel_cli.engine.distributed.tensor_parallel import rows_by_part, rows_by_rank, split_matrices


@dataclass(frozen=True)
class DistributedModel(ParallelModel):
    """A model on the ranks of a `DistributedGroup`.

    Args:
        module: The model, parallelised in place.
        group: The ranks.
        attention: Attention over the ranks that share a sequence; None where none do.
        is_sharded: Whether a rank holds a part of the model only.
        sync: Sums gradients where every rank holds the whole model; None where FSDP2 does it.
        defers_sync: Sum gradients only in the last backward pass of a step.
        reordered: Names of the parameters whose rows stand in the order of the tensor-parallel ranks.
        ordered: Replaces every other sum of gradients: after each micro-batch, in an order that does not depend on
            the ranks; None where it is not asked for.
    """

    _: KW_ONLY
    group: DistributedGroup
    sync: ReplicaSync | None
    defers_sync: bool
    reordered: frozenset[str] = frozenset()
    ordered: OrderedReplicas | OrderedShards | None = None

    def facts(self, section: DistributedSection) -> dict[str, str]:
        """See `ParallelModel`."""
        degrees = self.group.degrees
        sizes = {"replicas": degrees.dp_replicate, "shards": degrees.dp_shard, "cp": degrees.cp, "tp": degrees.tp}
        split = " x ".join(f"{size} {name}" for name, size in sizes.items() if size > 1) or "1"
        return {"ranks": f"{degrees.world} ({section.chosen_strategy() or 'fsdp2'}: {split})"}

    @contextmanager
    def micro_batch(self, *, is_last: bool) -> Iterator[None]:
        """See `ParallelModel`."""
        if self.sync is not None and is_last:
            self.sync.arm()
        if isinstance(self.module, FSDPModule):
            self.module.set_requires_gradient_sync(is_last or not self.defers_sync or self.ordered is not None)
        with self.forward():
            yield
        if self.sync is not None and is_last:
            self.sync.finish()
        if self.ordered is not None:
            self.ordered.take(is_last=is_last)

    def reshard(self) -> None:
        """See `ParallelModel`."""
        for module in self.module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def clip(self, parameters: Sequence[torch.Tensor], loss: torch.Tensor, max_norm: float | None) -> torch.Tensor:
        """See `ParallelModel`; the numbers are fp64."""
        numbers = _loss_and_norm(self.group, loss, parameters)
        if max_norm is not None:
            self.scale_gradients(parameters, torch.clamp(max_norm / (numbers[1] + 1e-6), max=1.0))
        return numbers

    def scale_gradients(self, parameters: Sequence[torch.Tensor], factor: torch.Tensor) -> None:
        """See `ParallelModel`."""
        _scale_gradients(parameters, factor)

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """See `ParallelModel`."""
        return whole(tensor)

    def whole_model(self) -> dict[str, torch.Tensor]:
        """See `ParallelModel`."""
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in self.own_tensors().items():
            self._gather(tensors, name, name, tensor)
        return tensors

    def whole_state(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See `ParallelModel`."""
        found: dict[str, torch.Tensor] = {}
        for name, tensor in tensors.items():
            self._gather(found, name, name.rpartition(".")[0], tensor)
        return found

    def parts(self, tensors: Mapping[str, torch.Tensor], *, are_state: bool = False) -> list[Part]:
        """See `ParallelModel`."""
        return own_parts(tensors, self.group.mesh, self.group.rank, self.reordered, owners=are_state)

    @torch.no_grad()
    def read_model(self, source: TensorSource) -> None:
        """See `ParallelModel`."""
        for name, tensor in self.own_tensors().items():
            local(tensor).copy_(read_local(source, name, tensor, self._reordered_over(name)))

    @torch.no_grad()
    def fill(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """See `ParallelModel`."""
        own = all_tensors(self.module)
        for name, tensor in tensors:
            local(own[name]).copy_(own_part(self._in_rank_order(name, tensor), own[name]))

    def read_state(self, source: TensorSource, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """See `ParallelModel`."""
        parameters = dict(self.module.named_parameters())
        found: dict[str, torch.Tensor] = {}
        for name in names:
            owner, shape = name.rpartition(".")[0], tuple(source.shape(name))
            parameter = parameters.get(owner)
            if parameter is not None and shape == parameter.shape:
                found[name] = wrapped(read_local(source, name, parameter, self._reordered_over(owner)), parameter)
            else:
                found[name] = source.region(name, Region.whole(shape))
        return found

    def own_state(self, tensors: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
        """See `ParallelModel`; sharded as the parameters are."""
        parameters = dict(self.module.named_parameters())
        found: dict[str, torch.Tensor] = {}
        for name, tensor in self.group.broadcast_tensors(tensors):
            owner = name.rpartition(".")[0]
            parameter = parameters.get(owner)
            if parameter is not None and tensor.shape == parameter.shape:
                tensor = sharded_like(self._in_rank_order(owner, tensor), parameter)
            found[name] = tensor
        return found

    def _gather(self, found: dict[str, torch.Tensor], name: str, owner: str, tensor: torch.Tensor) -> None:
        """Gathers one tensor on every rank that holds a part of it, and keeps it on rank 0."""
        gathered = whole(tensor)
        if self.group.rank == 0:
            # A counter has no rows that could stand in another order.
            if owner in self.reordered and gathered.dim():
                gathered = rows_by_part(gathered, self.group.degrees.tp).contiguous()
            found[name] = gathered.cpu()

    def _reordered_over(self, name: str) -> int:
        """The number of ranks in whose order the rows of a parameter stand."""
        return self.group.degrees.tp if name in self.reordered else 1

    def _in_rank_order(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A whole tensor with its rows in the order of the tensor-parallel ranks, where the parameter has them so."""
        return rows_by_rank(tensor, self.group.degrees.tp).contiguous() if name in self.reordered else tensor


def parallelised(
    model: nn.Module, group: RankGroup, section: DistributedSection, device: torch.device, *, is_elastic: bool = False
) -> ParallelModel:
    """Puts a model on the ranks, in place.

    Args:
        model: On its device with the same weights on every rank, or on the meta device; then it gets memory here for
            this rank's part, with undefined content.
        group: The ranks.
        section: The layout and its policies.
        device: Where the ranks compute.
        is_elastic: Sum gradients in an order that does not depend on the number of data-parallel ranks.

    Raises:
        ConfigError: The model has no plan for what is asked.
    """
    if not isinstance(group, DistributedGroup):
        if is_meta(model):
            materialise(model, device)
        return ParallelModel(model)
    degrees = group.degrees
    reordered: frozenset[str] = frozenset()
    if degrees.tp > 1:
        reordered = split_matrices(model, group.submesh("tp"), sequence_parallel=section.sequence_parallel)
    is_ddp = section.chosen_strategy() == "ddp"
    is_fsdp = not is_ddp and bool(degrees.dp * degrees.cp > 1 or section.mp_policy or section.offload_policy)
    if is_fsdp:
        fsdp2.shard(model, group.submesh("fsdp"), section)
    if is_meta(model):
        materialise(model, torch.device("cpu") if section.offload_policy else device)
    sync: ReplicaSync | None = None
    ordered: OrderedReplicas | OrderedShards | None = None
    if is_ddp:
        # Ranks that share a sequence hold gradients of different tokens: for the weights they are data-parallel.
        replicas = group.submesh("loss").get_group()
        if is_elastic:
            ordered = OrderedReplicas(model.parameters(), replicas)
        else:
            sync = ReplicaSync(model.parameters(), replicas)
    elif is_fsdp and is_elastic and degrees.dp > 1:
        ordered = OrderedShards(model)
    attention: AttentionOverRanks | None = None
    if degrees.cp > 1:
        attention = AttentionOverRanks(group.submesh("cp").get_group(), group.cp_rank, device)
    return DistributedModel(
        module=model,
        group=group,
        attention=attention,
        is_sharded=is_sharded(section, degrees),
        sync=sync,
        defers_sync=section.defer_fsdp_grad_sync,
        reordered=reordered,
        ordered=ordered,
    )


def _loss_and_norm(group: DistributedGroup, loss: torch.Tensor, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """The loss of the step and the norm of its whole gradient, as two fp64 numbers on the device.

    Args:
        group: All ranks of the run.
        loss: This rank's part of the loss; tensor-parallel peers have equal parts.
        parameters: Those with gradients; their gradients get the layout of the parameters, in place.
    """
    with torch.no_grad():
        squares = torch.zeros((), dtype=torch.float64, device=group.device)
        used = [parameter for parameter in parameters if parameter.grad is not None]
        if used:
            norms = torch._foreach_norm([_local_gradient(parameter) for parameter in used])
            copies = torch.tensor([_num_copies(group, parameter) for parameter in used], dtype=torch.float64)
            squares += (torch.stack(norms).double().square() / copies.to(norms[0].device)).sum().to(group.device)
        loss_sum, square_sum = group.all_reduce(torch.stack([group.counted_once(loss.detach().double()), squares]))
        return torch.stack([loss_sum, square_sum.sqrt()])


@torch.no_grad()
def _scale_gradients(parameters: Sequence[torch.Tensor], factor: torch.Tensor) -> None:
    """Multiplies every gradient by a number that is on the device; what is on another device gets a copy."""
    for parameter in parameters:
        if parameter.grad is not None:
            grad = local(parameter.grad)
            grad.mul_(factor.to(grad.device, grad.dtype))


def _local_gradient(parameter: torch.Tensor) -> torch.Tensor:
    redistribute_gradient(parameter)
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
