"""Numbers of models and losses are reduced over all micro-batches and ranks, and refused where they cannot be."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch

from automodel_cli.engine.distributed.environment import RankPlace
from automodel_cli.engine.distributed.rank_group import RankGroup
from automodel_cli.engine.protocols import Metric
from automodel_cli.engine.train.reported_metrics import ReportedMetrics
from automodel_cli.errors import ConfigError

LABELS = torch.tensor([[1, 2, 3, -100]]), torch.tensor([[1, -100, -100, -100]])


def reported(*micro_batches):
    found = ReportedMetrics()
    for labels, metrics in zip(LABELS, micro_batches, strict=False):
        found.add(labels, metrics)
    return found


@pytest.mark.parametrize(("reduction", "expected"), [("mean", (3 * 2.0 + 6.0) / 4), ("sum", 8.0), ("max", 6.0)])
def test_micro_batches_are_reduced_as_the_metric_says(reduction, expected):
    """A mean weights by label tokens, as the loss does."""
    metrics = [{"x": Metric(torch.tensor(value), reduction)} for value in (2.0, 6.0)]

    assert reported(*metrics).reduced(RankGroup()).tolist() == [expected]


class OneOfTwo(RankGroup):
    """A rank of two whose peer has reduced before it."""

    from_peer: ClassVar[list[torch.Tensor]] = []
    kinds: ClassVar[dict[str, tuple[str, str]]] = {}

    def broadcast(self, value):
        return self.kinds

    def all_reduce(self, values):
        self.from_peer.append(values.clone())
        return sum(self.from_peer[:-1], values)


@pytest.mark.parametrize("reduction", ["mean", "sum", "max"])
def test_two_ranks_give_the_bits_of_one(reduction):
    """Four micro-batches, of one rank or of two that take turns; the values are negative and uneven."""
    values = torch.tensor([-1.1, -2.3, -0.7, -5.9])
    micro_batches = [(LABELS[index % 2], {"x": Metric(value, reduction)}) for index, value in enumerate(values)]
    alone, first, second = ReportedMetrics(), ReportedMetrics(), ReportedMetrics()
    for index, micro_batch in enumerate(micro_batches):
        alone.add(*micro_batch)
        (first, second)[index % 2].add(*micro_batch)
    OneOfTwo.from_peer.clear()
    OneOfTwo.kinds = {"x": (reduction, "")}

    second.reduced(OneOfTwo(RankPlace(1, 2, 1, 2)))
    together = first.reduced(OneOfTwo(RankPlace(0, 2, 0, 2)))

    assert torch.equal(together, alone.reduced(RankGroup()))


def test_ranks_that_report_different_numbers_are_refused():
    """In the first step, before a collective could wait for ever."""
    OneOfTwo.kinds = {"y": ("mean", "")}

    with pytest.raises(ConfigError, match="rank 1 reports the metrics"):
        reported({"x": torch.tensor(1.0)}).reduced(OneOfTwo(RankPlace(1, 2, 1, 2)))


def test_a_masked_micro_batch_counts_for_nothing():
    """Its mean may be NaN, since it has nothing to average over."""
    found = ReportedMetrics()
    found.add(LABELS[0], {"x": torch.tensor(2.0)})
    found.add(torch.full((1, 4), -100), {"x": torch.tensor(math.nan)})

    assert found.reduced(RankGroup()).tolist() == [2.0]


def test_a_number_has_no_gradient_and_waits_for_the_end_of_the_step():
    """What is reported keeps no graph alive, and what a step that failed has left is forgotten."""
    weight = torch.ones((), requires_grad=True)
    found = reported({"x": weight * 2})
    found.begin_step()
    found.add(LABELS[0], {"x": weight * 3})

    numbers = found.reduced(RankGroup())

    assert numbers.tolist() == [3.0]
    assert not numbers.requires_grad
    assert ReportedMetrics().reduced(RankGroup()) is None


ONE = torch.tensor(1.0)


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"loss": ONE}, "'loss' of a metric is taken"),
        ({"val_loss": ONE}, "'val_loss' of a metric is taken"),
        ({"a b": ONE}, "no name of a metric"),
        ({"x": torch.ones(2)}, r"'x' is a Tensor \(2,\)"),
        ({"x": 1.0}, "'x' is a float"),
        ({"x": Metric(ONE, "median")}, "'median'"),
        ([ONE], "metrics are a list"),
    ],
)
def test_what_cannot_be_reported_is_refused(metrics, words):
    """The message names the metric and the rule."""
    with pytest.raises(ConfigError, match=words):
        reported(metrics)


def test_names_must_stay_the_same():
    """Ranks could not add what only some of them have."""
    with pytest.raises(ConfigError, match="this micro-batch reports the metrics"):
        reported({"x": ONE}, {"y": ONE})
    with pytest.raises(ConfigError, match="this micro-batch reports the metrics"):
        reported({}, {"y": ONE})
    with pytest.raises(ConfigError, match="by the model and by the loss"):
        ReportedMetrics().add(LABELS[0], {"x": ONE}, {"x": ONE})
