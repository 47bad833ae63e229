"""Blends: weights are met in every prefix, each part is read whole, and the order is a function of the position."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automodel_cli.engine.data.blend import MAX_PERIOD, BlendOrder, BlendSchedule, whole_shares
from automodel_cli.engine.data.loader import BatchLoader
from automodel_cli.engine.data.nanogpt_dataset import NanogptDataset
from automodel_cli.engine.data.order import SampleOrder
from automodel_cli.errors import DataError

WEIGHTS = st.lists(st.fractions(Fraction(1, 6), 50, max_denominator=6), min_size=1, max_size=6)


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
