"""The sample order is a bijection per epoch and a function of (seed, position, data) alone."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automodel_cli.engine.data.order import SampleOrder, ShardOrder, order_of
from automodel_cli.errors import DataError

SIZES = st.one_of(st.integers(1, 9), st.integers(1, 3000))


def epoch_of(order, epoch=0):
    """All sample ids of one epoch, in order."""
    return order.order(np.arange(order.num_samples) + epoch * order.num_samples).tolist()


@settings(deadline=None)
@given(size=SIZES, seed=st.integers(0, 2**63), epoch=st.integers(0, 10**6), shuffle=st.booleans())
def test_every_epoch_visits_every_sample_exactly_once(size, seed, epoch, shuffle):
    """For any size, powers of two or not, down to 1."""
    visited = epoch_of(SampleOrder(size, seed, "data", shuffle), epoch)

    assert sorted(visited) == list(range(size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_tiny_data_sets_reach_every_permutation(size):
    """On the smallest domains the network has one or two bits a side and must still mix: all size! orders occur."""
    seen = {tuple(epoch_of(SampleOrder(size, seed, "data"))) for seed in range(1500)}

    assert len(seen) == [1, 1, 2, 6, 24, 120][size]


@settings(deadline=None)
@given(size=SIZES, positions=st.lists(st.integers(0, 10**12), min_size=1, max_size=30))
def test_a_position_does_not_depend_on_what_is_asked_with_it(size, positions):
    """Asking for many positions, over many epochs, equals asking for each alone: nothing is remembered."""
    order = SampleOrder(size, 3, "data")

    together = order.order(np.array(positions)).tolist()

    assert together == [order.order(np.array([position])).tolist()[0] for position in positions]


def test_seed_epoch_and_data_each_change_the_order():
    """Two runs share an order only if all three agree."""
    reference = epoch_of(SampleOrder(500, 1, "a"))

    assert epoch_of(SampleOrder(500, 1, "a")) == reference
    assert epoch_of(SampleOrder(500, 2, "a")) != reference
    assert epoch_of(SampleOrder(500, 1, "b")) != reference
    assert epoch_of(SampleOrder(500, 1, "a"), epoch=1) != reference


def test_the_order_is_the_same_in_every_process_and_version():
    """Literal values: if they change, ALGORITHM_VERSION must too, since running experiments would read other data."""
    script = (
        "import numpy as np; from automodel_cli.engine.data.order import SampleOrder;"
        "print(SampleOrder(1000, 42, 'data').order(np.array([0, 1, 2, 999, 1000, 10**9])).tolist())"
    )

    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout

    assert printed.strip() == "[653, 253, 617, 470, 356, 547]"


def test_the_order_looks_random():
    """Over 300 seeds, mean and neighbour correlation of the first 50 of 1,000 samples are those of chance (4 sigma)."""
    drawn = np.array([SampleOrder(1000, seed, "data").order(np.arange(50)) for seed in range(300)]) / 1000
    num_drawn = drawn.size

    correlation = np.corrcoef(drawn[:, :-1].ravel(), drawn[:, 1:].ravel())[0, 1]

    assert abs(drawn.mean() - 0.4995) < 4 * np.sqrt(1 / 12 / num_drawn)
    assert abs(correlation) < 4 / np.sqrt(num_drawn)


def test_a_huge_data_set_needs_no_more_memory_than_the_question():
    """10**15 samples: a table of them would not fit any memory."""
    samples = SampleOrder(10**15, 0, "data").order(np.arange(100) + 10**17)

    assert len(set(samples.tolist())) == 100
    assert samples.min() >= 0
    assert samples.max() < 10**15


def test_without_shuffling_epochs_run_from_first_to_last():
    """The order of the files is the order of reading, again and again."""
    assert SampleOrder(3, 5, "data", shuffle=False).order(np.arange(7)).tolist() == [0, 1, 2, 0, 1, 2, 0]


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=8).filter(any),
    seed=st.integers(0, 999),
    epoch=st.integers(0, 50),
)
def test_shuffled_files_keep_their_samples_together_and_in_order(counts, seed, epoch):
    """An epoch is every shard's run of samples, whole, in some order; empty shards do no harm."""
    ends = np.cumsum(counts)
    runs = [list(range(end - count, end)) for count, end in zip(counts, ends, strict=True) if count]

    visited = epoch_of(ShardOrder(counts, seed, "data"), epoch)

    by_begin = {run[0]: run for run in runs}
    laid_out = []
    while len(laid_out) < len(visited):
        laid_out += by_begin.pop(visited[len(laid_out)])
    assert visited == laid_out
    assert by_begin == {}


def test_shuffled_files_change_their_order_between_epochs():
    """With 20 shards, 5 epochs of equal order would be a broken shuffle."""
    order = ShardOrder([2] * 20, 1, "data")

    assert len({tuple(epoch_of(order, epoch)) for epoch in range(5)}) == 5


def test_no_samples_are_refused():
    """A division by zero later would not say why."""
    with pytest.raises(DataError, match="0 samples"):
        SampleOrder(0, 1, "data")
    with pytest.raises(DataError, match="0 samples"):
        ShardOrder([0, 0], 1, "data")


def test_a_negative_position_is_refused():
    """It would silently belong to epoch -1."""
    with pytest.raises(ValueError, match="-1"):
        SampleOrder(5, 1, "data").order(np.array([0, -1]))


def test_a_plain_dataset_is_shuffled_by_the_seed():
    """A dataset without an order of its own gets a permutation of its length."""
    order = order_of([{"input_ids": [1], "labels": [2]}] * 40, seed=3)

    assert sorted(epoch_of(order)) == list(range(40))
    assert epoch_of(order) != list(range(40))
