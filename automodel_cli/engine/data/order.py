"""Which sample is read when: arithmetic, not state.

The k-th sample that a run consumes is a pure function of (seed, k) and of what the data are:
`epoch, i = divmod(k, num_samples)`, then a permutation of `i` under a key that is made of the
seed, the epoch, the data's fingerprint and `ALGORITHM_VERSION`. It follows that

- every epoch visits every sample exactly once,
- the number of ranks, micro-batches and loader workers cannot change the order,
- resuming needs one integer, and memory does not grow with the data.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from automodel_cli.engine.protocols import MapDataset, Order, OrdersSamples
from automodel_cli.errors import DataError

# Part of every key. Raise it with any change to the permutation, so that no run
# resumes under an order that looks the same and is not.
ALGORITHM_VERSION = 1

Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]

# Fewer rounds leave neighbours correlated on small domains, where a half has one or two bits.
_ROUNDS = 12

# Weights are rounded to this fraction of their sum, where they need more: the memory of a schedule is bounded.
MAX_PERIOD = 1 << 16


class SampleOrder:
    """The order of a whole run over samples `0 .. num_samples - 1`.

    Args:
        num_samples: Samples in one epoch, at least 1.
        seed: The run's seed.
        fingerprint: Identifies the data: other data get another order.
        shuffle: `False` reads every epoch from first to last.

    Raises:
        DataError: There are no samples.
    """

    def __init__(self, num_samples: int, seed: int, fingerprint: str, shuffle: bool = True) -> None:
        if num_samples < 1:
            raise DataError(f"the data set has {num_samples} samples; at least 1 is needed")
        self.num_samples = num_samples
        self.shuffle = shuffle
        self._seed = seed
        self._fingerprint = fingerprint

    def order(self, k: Int64Array) -> Int64Array:
        """Sample ids for the global positions `k` (int64, shape (n,), >= 0), shape (n,)."""
        epochs, indices = _epochs_and_indices(k, self.num_samples)
        if not self.shuffle:
            return indices
        samples = np.empty_like(indices)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            keys = _round_keys(self._seed, int(epoch), self._fingerprint)
            samples[chosen] = _permute(indices[chosen], self.num_samples, keys)
        return samples


class ShardOrder:
    """Samples from first to last within a shard, shards in another order each epoch.

    Args:
        samples_per_shard: Samples of each shard, in layout order; shards with 0 are allowed.
        seed: The run's seed.
        fingerprint: Identifies the data.

    Raises:
        DataError: There are no samples.
    """

    def __init__(self, samples_per_shard: Sequence[int], seed: int, fingerprint: str) -> None:
        self._counts = np.asarray(samples_per_shard, dtype=np.int64)
        self.num_samples = int(self._counts.sum())
        self._starts = np.concatenate(([0], np.cumsum(self._counts)))[:-1]
        self._shards = SampleOrder(len(self._counts), seed, f"shards of {fingerprint}")
        if self.num_samples < 1:
            raise DataError("the data set has 0 samples; at least 1 is needed")

    def order(self, k: Int64Array) -> Int64Array:
        """Sample ids for the global positions `k` (int64, shape (n,), >= 0), shape (n,)."""
        epochs, indices = _epochs_and_indices(k, self.num_samples)
        samples = np.empty_like(indices)
        num_shards = len(self._counts)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            shards = self._shards.order(np.arange(num_shards, dtype=np.int64) + epoch * num_shards)
            ends = np.cumsum(self._counts[shards])
            place = np.searchsorted(ends, indices[chosen], side="right")
            within = indices[chosen] - (ends - self._counts[shards])[place]
            samples[chosen] = self._starts[shards[place]] + within
        return samples


def _epochs_and_indices(k: Int64Array, num_samples: int) -> tuple[Int64Array, Int64Array]:
    positions = np.asarray(k, dtype=np.int64)
    if positions.size and int(positions.min()) < 0:
        raise ValueError(f"positions are counted from 0, not from {int(positions.min())}")
    epochs, indices = np.divmod(positions, np.int64(num_samples))
    return epochs, indices


def _round_keys(seed: int, epoch: int, fingerprint: str) -> UInt64Array:
    text = f"amcli sample order v{ALGORITHM_VERSION}|seed {seed}|epoch {epoch}|{fingerprint}"
    return np.frombuffer(hashlib.shake_256(text.encode()).digest(8 * _ROUNDS), dtype="<u8").astype(np.uint64)


def _permute(indices: Int64Array, num_samples: int, keys: UInt64Array) -> Int64Array:
    """A keyed permutation of `0 .. num_samples - 1`, applied to `indices`.

    A Feistel network permutes the next power of two; a value that leaves the range is sent
    through again until it returns ("cycle walking", Black and Rogaway 2002), which keeps the
    map one to one. The domain is less than twice the range, so two passes do on average.
    """
    num_bits = (num_samples - 1).bit_length()
    values = _feistel(indices.astype(np.uint64), num_bits, keys)
    outside = np.flatnonzero(values >= num_samples)
    while outside.size:
        values[outside] = _feistel(values[outside], num_bits, keys)
        outside = outside[values[outside] >= num_samples]
    return values.astype(np.int64)


def _feistel(values: UInt64Array, num_bits: int, keys: UInt64Array) -> UInt64Array:
    """Permute `0 .. 2**num_bits - 1`: the low and the high bits are XORed with each other's hash in turn."""
    low_bits = np.uint64((num_bits + 1) // 2)
    low_mask = (np.uint64(1) << low_bits) - np.uint64(1)
    high_mask = (np.uint64(1) << np.uint64(num_bits // 2)) - np.uint64(1)
    low, high = values & low_mask, values >> low_bits
    for round_, key in enumerate(keys):
        if round_ % 2 == 0:
            low = low ^ (_mix(high ^ key) & low_mask)
        else:
            high = high ^ (_mix(low ^ key) & high_mask)
    return (high << low_bits) | low


def _mix(values: UInt64Array) -> UInt64Array:
    """Spread every input bit over all 64 (the finalizer of SplitMix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def order_of(dataset: MapDataset, seed: int) -> Order:
    """The order in which a run reads `dataset`: its own if it chooses one, else shuffled by `seed`."""
    if isinstance(dataset, OrdersSamples):
        return dataset.sample_order(seed)
    kind = type(dataset)
    return SampleOrder(len(dataset), seed, f"{kind.__module__}.{kind.__qualname__} of {len(dataset)}")


class BlendSchedule:
    """Which part, and which of its samples, stands at which position.

    Args:
        weights: One above 0 for each part, at most 65,536 of them; only their ratios count.

    Attributes:
        period: Positions after which the schedule repeats.
        shares: Positions of each part in one period.
    """

    def __init__(self, weights: Sequence[Fraction]) -> None:
        self.shares = whole_shares(weights)
        self.period = sum(self.shares)
        self._parts = np.array(_quota_sequence(self.shares), dtype=np.int64)
        self._ranks = np.empty(self.period, dtype=np.int64)
        for part, share in enumerate(self.shares):
            self._ranks[self._parts == part] = np.arange(share)
        self._per_period = np.array(self.shares, dtype=np.int64)

    def locate(self, k: Int64Array) -> tuple[Int64Array, Int64Array]:
        """The part at each position `k` (n,), and how many positions before it went to that part, both (n,)."""
        periods, place = np.divmod(np.asarray(k, dtype=np.int64), np.int64(self.period))
        parts = self._parts[place]
        return parts, periods * self._per_period[parts] + self._ranks[place]


class BlendOrder:
    """The order of a run over parts that lie one behind the other.

    Args:
        orders: The order of each part over its own samples, from 0.
        schedule: Made for as many parts.

    Attributes:
        num_samples: Samples of all parts together.
    """

    def __init__(self, orders: Sequence[Order], schedule: BlendSchedule) -> None:
        self._orders = list(orders)
        self._schedule = schedule
        counts = [order.num_samples for order in orders]
        self._begins = np.cumsum([0, *counts[:-1]], dtype=np.int64)
        self.num_samples = sum(counts)

    def order(self, k: Int64Array) -> Int64Array:
        """Sample ids for the global positions `k` (int64, shape (n,), >= 0), shape (n,)."""
        parts, positions = self._schedule.locate(k)
        samples = np.empty_like(positions)
        for part in np.unique(parts):
            chosen = parts == part
            samples[chosen] = self._orders[part].order(positions[chosen]) + self._begins[part]
        return samples


def whole_shares(weights: Sequence[Fraction]) -> list[int]:
    """The smallest whole numbers in the ratio of the weights, rounded where their sum would exceed 65,536.

    >>> whole_shares([Fraction(30), Fraction("0.7") * 100]), whole_shares([Fraction(1, 3), Fraction(1)])
    ([3, 7], [1, 3])
    """
    scale = math.lcm(*(weight.denominator for weight in weights))
    whole = [int(weight * scale) for weight in weights]
    shared = math.gcd(*whole)
    whole = [weight // shared for weight in whole]
    return whole if sum(whole) <= MAX_PERIOD else _rounded(whole)


def _rounded(whole: Sequence[int]) -> list[int]:
    """Shares that add up to the longest period: by largest remainder, and at least 1 each."""
    total = sum(whole)
    room = MAX_PERIOD - len(whole)
    floors = [weight * room // total for weight in whole]
    by_remainder = sorted(range(len(whole)), key=lambda part: (-(whole[part] * room % total), part))
    extra = set(by_remainder[: room - sum(floors)])
    return [floor + 1 + (part in extra) for part, floor in enumerate(floors)]


def _quota_sequence(shares: Sequence[int]) -> list[int]:
    """The part at each position of one period.

    A part may be chosen at a position if that keeps it below its upper quota; of those that may, the
    one whose next sample is due first is chosen.
    """
    period = sum(shares)
    released: list[list[int]] = [[] for _ in range(period)]
    released[0] = list(range(len(shares)))
    counts = [0] * len(shares)
    due: list[tuple[float, int]] = []
    sequence = []
    for place in range(period):
        for part in released[place]:
            heapq.heappush(due, ((counts[part] + 1) / shares[part], part))
        _, part = heapq.heappop(due)
        sequence.append(part)
        counts[part] += 1
        if counts[part] < shares[part]:
            # Not in the past: its count has just passed the quota of this place.
            released[counts[part] * period // shares[part]].append(part)
    return sequence
