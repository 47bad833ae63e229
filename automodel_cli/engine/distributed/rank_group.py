"""The ranks of a run, seen from one of them: a process alone is a group of one, and its collectives are the identity.

Every decision of the training loop is made from values that all ranks have received alike. `distributed_group.py` has
the group of several processes; this module needs neither torch nor a network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from automodel_cli.engine.config.parallel_layout import Degrees
from automodel_cli.engine.distributed.environment import ALONE, RankPlace
from automodel_cli.engine.protocols import IGNORED_LABEL
from automodel_cli.errors import ConfigError, PeerFailedError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
Number = TypeVar("Number", int, "torch.Tensor")


@dataclass(frozen=True)
class RankGroup:
    """A process alone; the base of `DistributedGroup`.

    Args:
        place: This process among all.
        degrees: How many ranks share what.
    """

    place: RankPlace = ALONE
    degrees: Degrees = field(default_factory=Degrees)

    @property
    def is_alone(self) -> bool:
        """Whether nothing of `torch.distributed` is in use; a `DistributedGroup` may have one rank, too."""
        return True

    @property
    def rank(self) -> int:
        """Number of this rank over all."""
        return self.place.rank

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.place.world_size

    @property
    def dp_rank(self) -> int:
        """Which part of the global batch this rank reads: equal for tensor- and context-parallel peers."""
        return 0

    @property
    def cp_rank(self) -> int:
        """Which part of every sequence this rank holds."""
        return 0

    @property
    def tp_rank(self) -> int:
        """Which part of every split matrix this rank holds."""
        return 0

    def all_reduce_ints(self, *numbers: int) -> list[int]:
        """The sums of whole numbers over all ranks. Travels between the hosts, without waiting for a device."""
        return list(numbers)

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, in place. Travels between the devices."""
        return values

    def broadcast(self, value: T | None) -> T:
        """Rank 0's value, on every rank."""
        return value  # type: ignore[return-value]  # rank 0 gave one

    def gather(self, value: T) -> list[T] | None:
        """Every rank's value on rank 0, by rank; None on all others."""
        return [value]

    def broadcast_tensors(self, tensors: Mapping[str, torch.Tensor] | None) -> Iterator[tuple[str, torch.Tensor]]:
        """Rank 0's tensors on every rank, one after another, so that no rank has to hold them all.

        Args:
            tensors: On the CPU; None on all ranks but 0.
        """
        return iter((tensors or {}).items())

    def any(self, is_so: bool) -> bool:
        """Whether it is so on any rank."""
        return self.all_reduce_ints(int(is_so))[0] > 0

    def all(self, is_so: bool) -> bool:
        """Whether it is so on every rank."""
        return not self.any(not is_so)

    def counted_once(self, number: Number) -> Number:
        """This rank's share of a sum over the ranks that hold different tokens (torchtitan's mesh `loss`).

        Tensor-parallel peers compute the same loss from the same tokens: the first of them adds it, the others add
        zero. So a sum over all ranks is the sum over that mesh, without a message of its own.
        """
        if self.tp_rank == 0:
            return number
        return 0 if isinstance(number, int) else number.new_zeros(number.shape)

    def on_every_rank(self, work: Callable[[], T]) -> T:
        """Collective: does some work on every rank; if it fails on one, all raise.

        Raises:
            PeerFailedError: It failed on another rank, which raises the error itself.
        """
        failure: BaseException | None = None
        result: T | None = None
        try:
            result = work()
        except Exception as error:
            failure = error
        failed_somewhere = self.any(failure is not None)
        if failure is not None:
            raise failure
        if failed_somewhere:
            raise PeerFailedError("another rank failed")
        return result  # type: ignore[return-value]  # the work has returned it

    def on_first_rank(self, work: Callable[[], T]) -> T | None:
        """Collective: does some work on rank 0 while the others wait; None on them."""
        return self.on_every_rank(lambda: work() if self.rank == 0 else None)

    @contextmanager
    def entered_on_first_rank(self, open_: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
        """Collective: a context that only rank 0 enters and leaves; if entering fails, all ranks raise."""
        with contextlib.ExitStack() as stack:
            self.on_first_rank(lambda: stack.enter_context(open_()))
            yield

    def part_of_sequence(self, batch: dict[str, Any]) -> dict[str, Any]:
        """This rank's part of every sequence of a batch, with the positions of its tokens.

        Args:
            batch: Arrays (B, T), as the loader gives them; T is a multiple of the context-parallel ranks.

        Raises:
            ConfigError: T cannot be divided.
        """
        size = self.degrees.cp
        if size == 1:
            return batch
        B, T = batch["input_ids"].shape
        if T % size:
            raise ConfigError(f"samples have {T} tokens, which cannot be divided among {size} context-parallel ranks")
        begin, end = self.cp_rank * (T // size), (self.cp_rank + 1) * (T // size)
        part = {name: values[:, begin:end] for name, values in batch.items()}
        positions = np.broadcast_to(np.arange(begin, end, dtype=np.int64), (B, T // size)).copy()
        return {**part, "position_ids": part.get("position_ids", positions)}

    def split_batches(self, batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """This rank's batches of some: every rank gets equally many, the last one maybe without labels.

        Ranks that share a model must call it equally often. A masked batch adds nothing to a loss or a count.
        """
        mine: dict[str, Any] | None = None
        first: dict[str, Any] | None = None
        for number, batch in enumerate(batches):
            place = number % self.degrees.dp
            first = batch if place == 0 else first
            mine = batch if place == self.dp_rank else mine
            if place == self.degrees.dp - 1 and mine is not None:
                yield self.part_of_sequence(mine)
                mine, first = None, None
        if mine is None and first is not None:
            mine = {**first, "labels": np.full_like(first["labels"], IGNORED_LABEL)}
        if mine is not None:
            yield self.part_of_sequence(mine)


SOLO = RankGroup()
