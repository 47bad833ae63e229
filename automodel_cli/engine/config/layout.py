"""How a number of ranks is divided into data-, context- and tensor-parallel groups: arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from automodel_cli.engine.config.sections import DistributedSection


@dataclass(frozen=True)
class Degrees:
    """The sizes of the four dimensions of a run's ranks, outermost first.

    Args:
        dp_replicate: Groups that each hold the whole model.
        dp_shard: Ranks that one copy of the model is sharded over.
        cp: Ranks that share a sample, each with a part of the sequence.
        tp: Ranks that share a layer, each with a part of its matrices.
    """

    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1

    @property
    def dp(self) -> int:
        """Ranks that read different samples."""
        return self.dp_replicate * self.dp_shard

    @property
    def world(self) -> int:
        """All ranks."""
        return self.dp * self.cp * self.tp


def degrees_of(section: DistributedSection, world_size: int) -> Degrees:
    """The degrees of a section that `check_layout` has passed for this number of ranks.

    DDP is the layout in which every data-parallel rank holds the whole model.
    """
    dp = section.dp_size or world_size // (section.tp_size * section.cp_size)
    replicate = dp if section.chosen_strategy() == "ddp" else section.dp_replicate_size or 1
    return Degrees(replicate, dp // replicate, section.cp_size, section.tp_size)


def is_sharded(section: DistributedSection, degrees: Degrees) -> bool:
    """Whether a rank holds a part of the model only."""
    return degrees.tp > 1 or (section.chosen_strategy() != "ddp" and degrees.dp_shard * degrees.cp > 1)


def filled_batch(local_batch_size: int, global_batch_size: int, dp_size: int) -> int:
    """Samples of a forward pass: as many as are allowed, or all that a rank has of a step where these are fewer.

    >>> filled_batch(16, 16, 2)
    8
    """
    return min(local_batch_size, max(1, global_batch_size // dp_size))


def divisors(number: int) -> list[int]:
    """All divisors, ascending.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    return [n for n in range(1, number + 1) if number % n == 0]
