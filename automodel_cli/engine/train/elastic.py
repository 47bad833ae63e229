"""`deterministic: elastic`: a run gives the same bits on any number of data-parallel ranks.

Bits depend on the ranks through the order of sums and the random numbers of dropout. Here every micro-batch has its own
seed; gradients are added in the order of the micro-batches (`distributed/ddp.py`); the losses of all micro-batches
are gathered before they are added; and every rank computes the norm of whole tensors. Ranks that would compute a
micro-batch differently, because of their threads, their processor or their torch, are refused.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from automodel_cli.engine.config.settings import Settings
from automodel_cli.engine.distributed.parallel_model import ParallelModel
from automodel_cli.engine.distributed.rank_group import RankGroup
from automodel_cli.engine.train.device import Placement
from automodel_cli.engine.train.generators import seed_everything
from automodel_cli.errors import ConfigError


@dataclass(frozen=True)
class Elastic:
    """How the micro-batches of a step are numbered, over all ranks.

    Args:
        num_micro_batches: Micro-batches of a step, over all ranks.
        model: On the ranks.
        step: Steps done before this one.
    """

    seed: int
    num_micro_batches: int
    model: ParallelModel
    step: int = 0

    def at(self, step: int) -> Elastic:
        """The same object for the step that follows `step` steps."""
        return replace(self, step=step)

    def begin(self, index: int) -> None:
        """Seeds all generators for this rank's micro-batch `index` of the step."""
        sequence = np.random.SeedSequence([self.seed, self.step, self._number(index)])
        seed_everything(int(sequence.generate_state(1, np.uint64)[0] >> 1))

    @torch.no_grad()
    def clip(
        self, parameters: Sequence[torch.Tensor], losses: Sequence[torch.Tensor], max_norm: float | None
    ) -> torch.Tensor:
        """Clips the whole gradient; returns the loss of all ranks and the norm before clipping, fp64 (2,).

        Args:
            parameters: All trained parameters, in the same order in every layout.
            losses: Losses of this rank's micro-batches, each its part of the step's mean.
            max_norm: Largest norm; None only measures it.
        """
        of_step = torch.zeros(self.num_micro_batches, dtype=torch.float64, device=losses[0].device)
        of_step[[self._number(index) for index in range(len(losses))]] = torch.stack(list(losses)).double()
        self.model.group.all_reduce(of_step)  # each element has one summand that is not zero, so nothing is rounded
        grads = (parameter.grad for parameter in parameters if parameter.grad is not None)
        norms = [torch.linalg.vector_norm(self.model.whole(grad).contiguous()).double() for grad in grads]
        norm = torch.stack(norms).square().sum().sqrt().to(of_step.device)
        if max_norm is not None:
            self.model.scale_gradients(parameters, torch.clamp(max_norm / (norm + 1e-6), max=1.0))
        return torch.stack([of_step.sum(), norm])

    def _number(self, index: int) -> int:
        group = self.model.group
        return index * group.degrees.dp + group.dp_rank


def elastic_of(settings: Settings, placement: Placement, model: ParallelModel) -> Elastic | None:
    """The numbering of a run that asks for it, else None. Collective: every rank must call this.

    Raises:
        ConfigError: The ranks would compute the same micro-batch differently.
    """
    if settings.general.deterministic != "elastic":
        return None
    _check_alike(placement, model.group)
    steps = settings.step_scheduler
    return Elastic(settings.general.seed, steps.global_batch_size // int(steps.local_batch_size), model)


def _check_alike(placement: Placement, group: RankGroup) -> None:
    own = f"{placement.name}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
    first = group.broadcast(own if group.rank == 0 else None)
    if not group.any(own != first):
        return
    raise ConfigError(
        f"deterministic is elastic, but the ranks differ: rank 0 computes with {first}, and rank {group.rank} on "
        f"{platform.node()} with {own}"
        if own != first
        else f"deterministic is elastic, but another rank does not compute as rank 0 does, with {first}",
        help="set num_threads, and start all ranks on machines of one kind with the same torch",
    )
