"""The model of a run on its ranks; here on a process alone, which holds all of it.

`distributed_model.py` has the model of several ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from automodel_cli.engine.config.sections import DistributedSection
from automodel_cli.engine.distributed.module_tree import all_tensors, own_tensors
from automodel_cli.engine.distributed.rank_group import SOLO, RankGroup
from automodel_cli.engine.distributed.region import Part, Region, TensorSource

if TYPE_CHECKING:
    from automodel_cli.engine.distributed.context_parallel import AttentionOverRanks


@dataclass(frozen=True)
class ParallelModel:
    """A whole model on a process alone; the base of `DistributedModel`.

    Args:
        module: The model itself.
        group: The ranks.
        attention: Attention over the ranks that share a sequence; None where none do.
        is_sharded: Whether a rank holds a part of the model only.
    """

    module: nn.Module
    group: RankGroup = SOLO
    attention: AttentionOverRanks | None = None
    is_sharded: bool = False

    def facts(self, section: DistributedSection) -> dict[str, str]:
        """What is said of the layout at the start of a run."""
        return {}

    @contextmanager
    def micro_batch(self, *, is_last: bool) -> Iterator[None]:
        """Around the forward and the backward pass of one micro-batch."""
        yield

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Around every use of the model."""
        with self.attention or nullcontext():
            yield

    def reshard(self) -> None:
        """Frees gathered weights after a use without a backward pass, so that parameters are shards again."""

    def clip(self, parameters: Sequence[torch.Tensor], loss: torch.Tensor, max_norm: float | None) -> torch.Tensor:
        """Clips the whole gradient.

        Args:
            parameters: All that are trained.
            loss: This rank's part of the loss of the step.
            max_norm: Largest norm; None only measures it.

        Returns:
            The loss of all ranks and the norm before clipping, (2,), on the device.
        """
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        if max_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        return torch.stack([loss, norm.to(loss.dtype)])

    @torch.no_grad()
    def scale_gradients(self, parameters: Sequence[torch.Tensor], factor: torch.Tensor) -> None:
        """Multiplies every gradient by a number; gradients on another device get a copy of it."""
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor.to(parameter.grad.device, parameter.grad.dtype))

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """A whole tensor from this rank's part. Collective: every rank that holds a part must call this."""
        return tensor

    def own_tensors(self) -> dict[str, torch.Tensor]:
        """The model's tensors as this rank holds them, a tied one under its first name."""
        return own_tensors(self.module)

    def whole_model(self) -> dict[str, torch.Tensor]:
        """The model's whole tensors, a tied one under its first name; empty on all ranks but 0.

        On the CPU, except for a process alone, which gives its own tensors.
        """
        return self.own_tensors()

    def whole_state(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """An optimizer's named state, whole, as `whole_model` gives the weights."""
        return dict(tensors)

    def parts(self, tensors: Mapping[str, torch.Tensor], *, are_state: bool = False) -> list[Part]:
        """What this rank writes of tensors that all ranks hold together.

        Args:
            tensors: Tensors of the model, or with `are_state` of its optimizer; the same names on all ranks.
            are_state: Whether names are `<parameter>.<state>`.
        """
        return [Part(name, Region.whole(tensor.shape), tensor) for name, tensor in tensors.items()]

    @torch.no_grad()
    def read_model(self, source: TensorSource) -> None:
        """Fills the model with stored weights; this rank reads its own parts, and nothing else.

        Args:
            source: Holds every tensor of the model whole, in its layout and order.
        """
        for name, tensor in self.own_tensors().items():
            tensor.copy_(source.region(name, Region.whole(tensor.shape)))

    @torch.no_grad()
    def fill(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Fills the model, or some tensors of it, with whole ones; this rank keeps its own parts.

        Args:
            tensors: By name, in the order of the model; each is let go before the next is asked for.
        """
        own = all_tensors(self.module)
        for name, tensor in tensors:
            own[name].copy_(tensor)

    def read_state(self, source: TensorSource, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """An optimizer's state as this rank holds it, read by itself.

        Args:
            source: As `whole_state` gave it.
            names: Names of all tensors in it.
        """
        return {name: source.region(name, Region.whole(source.shape(name))) for name in names}

    def own_state(self, tensors: Mapping[str, torch.Tensor] | None) -> Mapping[str, torch.Tensor]:
        """Rank 0's whole state as this rank's optimizer holds it.

        Args:
            tensors: As `whole_state` gave them; None on all ranks but 0.
        """
        return tensors or {}


def as_parallel(model: nn.Module | ParallelModel) -> ParallelModel:
    """A model as it is, or a plain module as that of a process alone."""
    return model if isinstance(model, ParallelModel) else ParallelModel(model)
