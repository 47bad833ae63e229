"""A process alone is a group of one, and what a group derives from its collectives."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from automodel_cli.engine.config.parallel_layout import Degrees
from automodel_cli.engine.distributed.rank_group import SOLO, RankGroup
from automodel_cli.engine.protocols import IGNORED_LABEL
from automodel_cli.errors import PeerFailedError


@dataclass(frozen=True)
class FakeGroup(RankGroup):
    """One of several ranks; a peer adds `peer` to every number."""

    peer: int = 0
    place_in_dp: int = 0
    place_in_tp: int = 0
    asked: list[int] = field(default_factory=list)

    @property
    def dp_rank(self) -> int:
        return self.place_in_dp

    @property
    def tp_rank(self) -> int:
        return self.place_in_tp

    def all_reduce_ints(self, *numbers: int) -> list[int]:
        self.asked.extend(numbers)
        return [number + self.peer for number in numbers]


def test_every_collective_of_a_process_alone_is_the_identity():
    """What it sends is what it gets."""
    tensor = torch.arange(3)

    assert SOLO.is_alone
    assert SOLO.world_size == 1
    assert SOLO.all_reduce_ints(3, 0, 5) == [3, 0, 5]
    assert SOLO.all_reduce(tensor) is tensor
    assert SOLO.broadcast("text") == "text"
    assert SOLO.gather("text") == ["text"]
    assert dict(SOLO.broadcast_tensors({"a": tensor})) == {"a": tensor}
    assert SOLO.counted_once(7) == 7
    batch = {"input_ids": np.zeros((1, 3)), "labels": np.zeros((1, 3))}
    assert SOLO.part_of_sequence(batch) is batch
    assert [*SOLO.split_batches([batch, batch])] == [batch, batch]


def test_a_group_refuses_what_any_rank_refuses():
    """The question travels: what is sent is whether this rank refuses."""
    group = FakeGroup(peer=1)

    assert not group.all(True)
    assert group.asked == [0]


def test_work_that_fails_on_one_rank_fails_on_all():
    """The rank where it failed raises the error itself, and the others say only that a peer has failed."""

    def fail() -> None:
        raise ValueError("here")

    with pytest.raises(ValueError, match="here"):
        FakeGroup().on_every_rank(fail)
    with pytest.raises(PeerFailedError):
        FakeGroup(peer=1).on_every_rank(lambda: 1)
    assert FakeGroup().on_every_rank(lambda: 1) == 1


def test_tensor_parallel_peers_add_a_loss_and_its_tokens_once():
    """The sum over all ranks is then the sum over those that hold different tokens; infinity stays infinity."""
    first, second = FakeGroup(place_in_tp=0), FakeGroup(place_in_tp=1)

    assert first.counted_once(5) + second.counted_once(5) == 5
    for loss in (torch.tensor(2.5, dtype=torch.float64), torch.tensor(float("inf"))):
        assert torch.equal(first.counted_once(loss) + second.counted_once(loss), loss)


def test_every_rank_gets_equally_many_batches():
    """Of three batches and two ranks, the second rank gets one that adds nothing to a loss or a count."""
    batches = [{"input_ids": np.full((1, 2), number), "labels": np.full((1, 2), number)} for number in range(3)]

    first, second = (
        [*FakeGroup(degrees=Degrees(dp_shard=2), place_in_dp=rank).split_batches(batches)] for rank in (0, 1)
    )

    assert [int(batch["labels"][0, 0]) for batch in first] == [0, 2]
    assert [int(batch["labels"][0, 0]) for batch in second] == [1, IGNORED_LABEL]
