"""Which part of a blend is read at which position: arithmetic over one short period.

In every prefix of the run, the number of samples of each part differs by less than 1 from its share, and
the position within the part follows: both are functions of the position alone, so a blend is resumed
from one integer like everything else. Each part has an order of its own, by which it reads each of its
samples once in each of its epochs; a part with a large weight has more epochs than the others.

The schedule is the quota method of Balinski and Young (1975), which they proved to keep every prefix
within its quotas.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from automodel_cli.engine.protocols import Order

Int64Array = npt.NDArray[np.int64]

# Weights are rounded to this fraction of their sum, where they need more: the memory of a schedule is bounded.
MAX_PERIOD = 1 << 16


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
