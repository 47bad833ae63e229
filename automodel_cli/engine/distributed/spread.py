"""A model spread over the ranks of a run, and what the training step must do differently because of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from automodel_cli.engine.config.layout import is_sharded
from automodel_cli.engine.config.sections import DistributedSection
from automodel_cli.engine.distributed import fsdp2
from automodel_cli.engine.distributed.context_parallel import AttentionOverRanks
from automodel_cli.engine.distributed.ddp import ReplicaSync
from automodel_cli.engine.distributed.gather import Turn, like, own_part, rows_in_model_order, rows_in_rank_order, whole
from automodel_cli.engine.distributed.ordered import OrderedReplicas, OrderedShards
from automodel_cli.engine.distributed.parts import Part, TensorSource, own_parts, read_local, wrapped
from automodel_cli.engine.distributed.region import Region
from automodel_cli.engine.distributed.skeleton import all_tensors, is_skeleton, materialise
from automodel_cli.engine.distributed.team import Team
from automodel_cli.engine.distributed.tensor_parallel import split_matrices
from automodel_cli.engine.distributed.totals import loss_and_norm, scale_gradients


@dataclass(frozen=True)
class Spread:
    """How the model of a run lies on its ranks.

    Args:
        team: The ranks.
        model: The model, spread in place.
        sync: Sums gradients where every rank holds the whole model; None where FSDP2 does it.
        defers_sync: Sum gradients only in the last backward pass of a step.
        attention: Attention over the ranks that share a sequence; None where nobody does.
        to_model_order: Rows of a whole tensor as the model has them.
        to_rank_order: Its inverse.
        reordered: Names of the parameters whose rows stand in the order of the tensor-parallel ranks.
        is_sharded: Whether a rank holds a part of the model only.
        ordered: Sums gradients after every micro-batch, in place of everybody else, in an order that does not depend
            on the ranks; None where nobody asks for it.
    """

    team: Team
    model: nn.Module
    sync: ReplicaSync | None
    defers_sync: bool
    attention: AttentionOverRanks | None
    to_model_order: Turn
    to_rank_order: Turn
    reordered: frozenset[str] = frozenset()
    is_sharded: bool = False
    ordered: OrderedReplicas | OrderedShards | None = None

    def in_words(self, section: DistributedSection) -> str:
        """The layout, for people."""
        degrees = self.team.degrees
        parts = {"replicas": degrees.dp_replicate, "shards": degrees.dp_shard, "cp": degrees.cp, "tp": degrees.tp}
        split = " x ".join(f"{size} {name}" for name, size in parts.items() if size > 1) or "1"
        return f"{degrees.world} ({section.chosen_strategy() or 'fsdp2'}: {split})"

    @contextmanager
    def micro_batch(self, *, is_last: bool) -> Iterator[None]:
        """Around the forward and the backward pass of one micro-batch."""
        if self.sync is not None and is_last:
            self.sync.arm()
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(is_last or not self.defers_sync or self.ordered is not None)
        with self.forward():
            yield
        if self.sync is not None and is_last:
            self.sync.finish()
        if self.ordered is not None:
            self.ordered.take(is_last=is_last)

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Around every use of the model."""
        if self.attention is None:
            yield
        else:
            with self.attention:
                yield

    def clip(self, parameters: Sequence[torch.Tensor], loss: torch.Tensor, max_norm: float | None) -> torch.Tensor:
        """Clips the whole gradient; gives the loss of all ranks, and the norm before, as numbers on the device."""
        numbers = loss_and_norm(self.team, loss, parameters)
        if max_norm is not None:
            scale_gradients(parameters, torch.clamp(max_norm / (numbers[1] + 1e-6), max=1.0))
        return numbers

    def whole_model(self) -> dict[str, torch.Tensor]:
        """The model's whole tensors on the CPU, a tied one under its first name; empty on all ranks but 0."""
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in self.own_tensors().items():
            self._gather(tensors, name, name, tensor)
        return tensors

    def own_tensors(self) -> dict[str, torch.Tensor]:
        """The model's tensors as this rank holds them, a tied one under its first name."""
        seen: set[int] = set()
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                tensors[name] = tensor.detach()
        return tensors

    def parts(self, tensors: Mapping[str, torch.Tensor], *, are_state: bool = False) -> list[Part]:
        """What this rank writes of tensors that all ranks hold together.

        Args:
            tensors: Of the model, or with `are_state` of its optimizer; the same names on all ranks.
            are_state: Whether names are `<parameter>.<state>`.
        """
        return own_parts(tensors, self.team.mesh, self.team.rank, self.reordered, owners=are_state)

    @torch.no_grad()
    def read_model(self, source: TensorSource) -> None:
        """Fills the model with stored weights; this rank reads its own parts, and nothing else.

        Args:
            source: Holds every tensor of the model whole, in its layout and order.
        """
        for name, tensor in self.own_tensors().items():
            ranks = self.team.degrees.tp if name in self.reordered else 1
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            local.copy_(read_local(source, name, tensor, ranks))

    @torch.no_grad()
    def fill(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Fills the model, or some tensors of it, with whole ones; this rank keeps its own parts.

        Args:
            tensors: By name, in the order of the model; each is let go before the next is asked for.
        """
        own = all_tensors(self.model)
        for name, tensor in tensors:
            mine = own[name]
            local = mine.to_local() if isinstance(mine, DTensor) else mine
            local.copy_(own_part(self.to_rank_order(name, tensor), mine))

    def read_state(self, source: TensorSource, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """An optimizer's state as this rank holds it, read by itself from where all of it is.

        Args:
            source: As `whole_state` gave it.
            names: Of everything in it.
        """
        parameters = dict(self.model.named_parameters())
        found: dict[str, torch.Tensor] = {}
        for name in names:
            owner, shape = name.rpartition(".")[0], tuple(source.shape(name))
            parameter = parameters.get(owner)
            if parameter is not None and shape == parameter.shape:
                ranks = self.team.degrees.tp if owner in self.reordered else 1
                found[name] = wrapped(read_local(source, name, parameter, ranks), parameter)
            else:
                found[name] = source.region(name, Region.whole(shape))
        return found

    def whole_state(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """An optimizer's named state, whole, on the CPU; empty on all ranks but 0."""
        found: dict[str, torch.Tensor] = {}
        for name, tensor in tensors.items():
            self._gather(found, name, name.rpartition(".")[0], tensor)
        return found

    def own_state(self, tensors: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
        """Rank 0's whole state as this rank's optimizer holds it: sharded as the parameters are.

        Args:
            tensors: As `whole_state` gave them; None on all ranks but 0.
        """
        parameters = dict(self.model.named_parameters())
        found: dict[str, torch.Tensor] = {}
        for name, tensor in self.team.shared(tensors):
            owner = name.rpartition(".")[0]
            parameter = parameters.get(owner)
            if parameter is not None and tensor.shape == parameter.shape:
                tensor = like(self.to_rank_order(owner, tensor), parameter)
            found[name] = tensor
        return found

    def _gather(self, found: dict[str, torch.Tensor], name: str, owner: str, tensor: torch.Tensor) -> None:
        """Gathers one tensor on every rank that holds a part of it, and keeps it on rank 0."""
        gathered = whole(tensor)
        if self.team.rank == 0:
            # A counter has no rows that could stand in another order.
            found[name] = (self.to_model_order(owner, gathered) if gathered.dim() else gathered).cpu()

    def rest(self) -> None:
        """Frees gathered weights after a use that had no backward pass, so that parameters are shards again."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def spread(
    model: nn.Module,
    team: Team,
    section: DistributedSection,
    *,
    is_elastic: bool = False,
    device: torch.device | None = None,
) -> Spread:
    """Spreads a model over the ranks, in place.

    Args:
        model: On its device with the same weights on every rank, or without content.
        team: The ranks.
        section: The layout and its policies.
        is_elastic: Sum gradients in an order that does not depend on the number of data-parallel ranks.
        device: Where the ranks compute. A model without content gets memory there for this rank's part; what is in
            it is undefined.

    Raises:
        ConfigError: The model has no plan for what is asked.
    """
    degrees, mesh = team.degrees, team.mesh
    reordered: frozenset[str] = frozenset()
    if degrees.tp > 1:
        reordered = split_matrices(model, mesh["tp"], sequence_parallel=section.sequence_parallel)
    is_ddp = section.chosen_strategy() == "ddp"
    is_fsdp = not is_ddp and bool(degrees.dp * degrees.cp > 1 or section.mp_policy or section.offload_policy)
    if is_fsdp:
        fsdp2.shard(model, _shard_mesh(team), section)
    if is_skeleton(model):
        materialise(model, torch.device("cpu") if section.offload_policy else device or torch.device(mesh.device_type))
    # Ranks that share a sequence hold gradients of different tokens: for the weights they are data-parallel.
    sync: ReplicaSync | None = None
    ordered: OrderedReplicas | OrderedShards | None = None
    if is_ddp:
        group = _flat(mesh, ("dp_replicate", "dp_shard", "cp")).get_group()
        if is_elastic:
            ordered = OrderedReplicas(model.parameters(), group)
        else:
            sync = ReplicaSync(model.parameters(), group)
    elif is_fsdp and is_elastic and degrees.dp > 1:
        ordered = OrderedShards(model)
    attention: AttentionOverRanks | None = None
    if degrees.cp > 1:
        attention = AttentionOverRanks(mesh["cp"].get_group(), team.cp_rank, device)
    return Spread(
        team=team,
        model=model,
        sync=sync,
        defers_sync=section.defer_fsdp_grad_sync,
        attention=attention,
        to_model_order=rows_in_model_order(reordered, degrees.tp),
        to_rank_order=rows_in_rank_order(reordered, degrees.tp),
        reordered=reordered,
        is_sharded=is_sharded(section, degrees),
        ordered=ordered,
    )


def _shard_mesh(team: Team) -> DeviceMesh:
    """What FSDP2 shards over: one dimension, or replicas and shards."""
    mesh = team.mesh
    if team.degrees.cp == 1:
        return mesh["dp_replicate", "dp_shard"] if team.degrees.dp_replicate > 1 else mesh["dp_shard"]
    if team.degrees.dp_replicate == 1:
        return _flat(mesh, ("dp_shard", "cp"))
    _flat(mesh, ("dp_shard", "cp"))
    return mesh["dp_replicate", "dp_shard_cp"]


def _flat(mesh: DeviceMesh, names: tuple[str, ...]) -> DeviceMesh:
    """Several dimensions as one, under their joined names."""
    return mesh[names]._flatten("_".join(names))
