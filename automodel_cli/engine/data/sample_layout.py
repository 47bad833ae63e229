"""Where each sample begins: sample id -> (shard, token offset).

A sample is a window of `seq_len + 1` tokens inside one shard: `seq_len` inputs and the
look-ahead of the last one. In the dense layout neighbours share one token, so that every
transition inside a shard is trained on once, and offsets are computed, not stored. In the
aligned layout every window begins at a BOS token and the offsets are stored, 8 bytes a sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]


def num_samples(shard_tokens: int, seq_len: int) -> int:
    """How many samples of `seq_len` inputs the dense layout finds in one shard.

    Args:
        shard_tokens: Length of the shard, in tokens (not bytes).
        seq_len: Inputs per sample; the last one also needs one token of look-ahead.

    >>> num_samples(shard_tokens=9, seq_len=4), num_samples(shard_tokens=8, seq_len=4)
    (2, 1)
    """
    return max(shard_tokens - 1, 0) // seq_len


def aligned_starts(bos_offsets: Int64Array, shard_tokens: int, seq_len: int) -> Int64Array:
    """Offsets of the samples of one shard when each must begin at a BOS token.

    The first BOS begins the first sample; each further sample begins at the first BOS at or
    after the end of the inputs of the one before.

    >>> aligned_starts(np.array([0, 3, 5, 9, 10]), shard_tokens=15, seq_len=4).tolist()
    [0, 5, 9]
    """
    fitting = bos_offsets[bos_offsets + seq_len + 1 <= shard_tokens]
    following = np.searchsorted(fitting, fitting + seq_len).tolist()
    chosen = []
    index = 0
    while index < len(following):
        chosen.append(index)
        index = following[index]
    return fitting[chosen]


class DenseLayout:
    """Samples at every `seq_len` tokens of every shard.

    Args:
        shard_tokens: Tokens of each shard.
        seq_len: Inputs per sample.
    """

    def __init__(self, shard_tokens: Sequence[int], seq_len: int) -> None:
        self._seq_len = seq_len
        self.samples_per_shard = [num_samples(count, seq_len) for count in shard_tokens]
        self._ends = np.cumsum(self.samples_per_shard, dtype=np.int64)

    def locate(self, sample_ids: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Shard numbers (B,) and token offsets (B,) of the samples `sample_ids` (B,)."""
        shards, within = _shard_and_place(self._ends, sample_ids)
        return shards, within * self._seq_len


class AlignedLayout:
    """Samples at given offsets.

    Args:
        starts: For each shard, the token offsets at which its samples begin.
    """

    def __init__(self, starts: Sequence[Int64Array]) -> None:
        self.samples_per_shard = [len(offsets) for offsets in starts]
        self._ends = np.cumsum(self.samples_per_shard, dtype=np.int64)
        self._starts = np.concatenate(starts)

    def locate(self, sample_ids: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Shard numbers (B,) and token offsets (B,) of the samples `sample_ids` (B,)."""
        shards, _ = _shard_and_place(self._ends, sample_ids)
        return shards, self._starts[sample_ids]


def _shard_and_place(ends: Int64Array, sample_ids: Int64Array) -> tuple[Int64Array, Int64Array]:
    shards = np.searchsorted(ends, sample_ids, side="right")
    # Shard 0 begins at sample 0; any other where the one before it ends.
    begins = np.concatenate((np.zeros(1, dtype=np.int64), ends[:-1]))
    return shards, sample_ids - begins[shards]
