"""The sample order is a bijection per epoch and a function of (seed, position, data) alone."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automodel_cli.engine.data.loader import BatchLoader
from automodel_cli.engine.data.nanogpt_dataset import NanogptDataset
from automodel_cli.engine.data.order import (
    MAX_PERIOD,
    BlendOrder,
    BlendSchedule,
    SampleOrder,
    ShardOrder,
    order_of,
    whole_shares,
)
from automodel_cli.errors import DataError

SIZES = st.one_of(st.integers(1, 9), st.integers(1, 3000))
WEIGHTS = st.lists(st.fractions(Fraction(1, 6), 50, max_denominator=6), min_size=1, max_size=6)


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


@settings(max_examples=40, deadline=None)
@given(weights=WEIGHTS, begin=st.integers(0, 10**12))
def test_in_every_prefix_each_part_is_within_one_sample_of_its_share(weights, begin):
    """|count - share x length| < 1 for every length, also far into a run."""
    schedule = BlendSchedule(weights)
    k = np.arange(2 * min(schedule.period, 500) + 1) + begin

    parts, positions = schedule.locate(k)

    for part, share in enumerate(schedule.shares):
        # How many of the positions before k[i] went to this part: known wherever the part stands.
        here = parts == part
        assert np.all(np.abs(positions[here] * schedule.period - k[here] * share) < schedule.period)


@settings(max_examples=40, deadline=None)
@given(weights=WEIGHTS)
def test_within_a_period_the_quota_holds_exactly(weights):
    """In whole numbers: floor(q) <= count <= ceil(q) after each position."""
    schedule = BlendSchedule(weights)
    parts, _ = schedule.locate(np.arange(schedule.period))

    for part, share in enumerate(schedule.shares):
        counts = np.cumsum(parts == part)
        scaled = np.arange(1, schedule.period + 1) * share
        assert np.all(counts >= scaled // schedule.period)
        assert np.all(counts <= -(-scaled // schedule.period))


@settings(max_examples=40, deadline=None)
@given(weights=WEIGHTS, length=st.integers(1, 400))
def test_positions_of_a_part_are_counted_from_zero_without_gaps(weights, length):
    """So each sample of a part is read once in each of its epochs."""
    parts, positions = BlendSchedule(weights).locate(np.arange(length))

    for part in range(len(weights)):
        assert positions[parts == part].tolist() == list(range(int((parts == part).sum())))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=30))
def test_any_weights_become_shares_of_a_bounded_period(weights):
    """Exact in a small period, else each within one part in 65,536 and never nothing."""
    shares = whole_shares([Fraction(weight) for weight in weights])

    assert sum(shares) <= MAX_PERIOD
    assert min(shares) >= 1
    for share, weight in zip(shares, weights, strict=True):
        error = abs(Fraction(share, sum(shares)) - Fraction(weight, sum(weights)))
        assert error <= Fraction(len(weights) + 1, MAX_PERIOD)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=4), seed=st.integers(0, 99), begin=st.integers(0, 10**6))
def test_the_order_is_a_function_of_the_position(sizes, seed, begin):
    """Any piece of the stream is what the whole stream has there; parts keep to their own samples."""
    orders = [SampleOrder(size, seed, f"part {part}") for part, size in enumerate(sizes)]
    order = BlendOrder(orders, BlendSchedule([Fraction(part + 1) for part in range(len(sizes))]))

    stream = order.order(np.arange(60) + begin)

    assert np.array_equal(order.order(np.arange(30, 60) + begin), stream[30:])
    assert stream.min() >= 0
    assert stream.max() < order.num_samples == sum(sizes)


@pytest.fixture
def blended(write_shards, tmp_path):
    """30 to 70, of 6 + 2 and of 10 samples, whose tokens tell where they come from."""
    a = write_shards(tmp_path / "a", [25, 9], modulus=40)
    b = write_shards(tmp_path / "b", [41], modulus=41)
    raw = bytearray((tmp_path / "b" / "s0_000000.bin").read_bytes())
    raw[1024:] = (np.arange(41, dtype="<u2") + 1000).tobytes()
    (tmp_path / "b" / "s0_000000.bin").write_bytes(raw)
    return lambda: NanogptDataset(["30", a, "70", b], 4)


def stream(dataset, num_steps, *, local=4, dp_size=1, workers=0, start=0):
    """The first inputs of all samples of a run, in order."""
    ranks = []
    for rank in range(dp_size):
        loader = BatchLoader(
            dataset,
            dataset.sample_order(3),
            global_batch_size=12,
            local_batch_size=local,
            dp_rank=rank,
            dp_size=dp_size,
            num_workers=workers,
        )
        steps = loader.iter_steps(start)
        ranks.append([np.concatenate([batch["input_ids"] for batch in next(steps)]) for _ in range(num_steps)])
        steps.close()
    return np.concatenate([np.concatenate(step) for step in zip(*ranks, strict=True)])[:, 0].tolist()


def test_a_blend_meets_its_weights_and_reads_each_part_once_per_epoch(blended):
    """100 samples: 30 of the first part, which has 8, and 70 of the second, which has 10."""
    dataset = blended()
    assert len(dataset) == 8 + 10

    read = stream(dataset, 10)[:100]

    first, second = [x for x in read if x < 1000], [x for x in read if x >= 1000]
    assert (len(first), len(second)) == (30, 70)
    for epoch in range(3):
        assert len(set(first[8 * epoch : 8 * epoch + 8])) == 8
    for epoch in range(7):
        assert len(set(second[10 * epoch : 10 * epoch + 10])) == 10
    assert second[:10] != second[10:20]


@pytest.mark.parametrize(("local", "dp_size", "workers"), [(12, 1, 0), (1, 1, 2), (3, 2, 0), (2, 3, 1), (1, 4, 3)])
def test_the_stream_of_a_blend_depends_on_neither_ranks_nor_workers(blended, local, dp_size, workers):
    """And resumes at any step."""
    whole = stream(blended(), 6)

    assert stream(blended(), 6, local=local, dp_size=dp_size, workers=workers) == whole
    assert stream(blended(), 3, local=local, dp_size=dp_size, workers=workers, start=36) == whole[36:]


def test_other_weights_are_other_data(write_shards, tmp_path):
    """A run cannot be resumed on them by mistake; the same ratio is the same blend."""
    a, b = write_shards(tmp_path / "a", [25]), write_shards(tmp_path / "b", [30])

    fingerprints = [
        NanogptDataset(pattern, 4).fingerprint for pattern in ([a, b], ["1", a, "2", b], ["2", a, "1", b], [1, a, 2, b])
    ]

    assert fingerprints[1] == fingerprints[3]
    assert len(set(fingerprints)) == 3


def test_a_part_without_samples_is_refused(write_shards, tmp_path):
    """Its weight could not be met."""
    a, b = write_shards(tmp_path / "a", [25]), write_shards(tmp_path / "b", [4])

    with pytest.raises(DataError, match="no sample of 4 inputs"):
        NanogptDataset([1, a, 2, b], 4)
