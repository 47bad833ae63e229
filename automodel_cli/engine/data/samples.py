"""From the number of a sample to its tokens: where each sample begins, the tokens there, and the documents in it.

A sample is a window of `seq_len + 1` tokens inside one shard: `seq_len` inputs and the
look-ahead of the last one. In the dense layout neighbours share one token, so that every
transition inside a shard is trained on once, and offsets are computed, not stored. In the
aligned layout every window begins at a BOS token and the offsets are stored, 8 bytes a sample.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from automodel_cli.engine.shards.tokens import Int64Array, ShardInfo, TokenArray, Tokens

IntArray: TypeAlias = npt.NDArray[np.integer[Any]]

# Each holds a file descriptor; 1,024 is the usual limit of a process.
_MAX_OPEN_SHARDS = 256


class OpenShards:
    """Shards that are opened when first needed; the least recently used are closed.

    So a data set of thousands of shards stays below the limit of open files. Safe to call from several
    threads, and picklable: a copy in another process opens its own files.

    Args:
        shards: The shards, which are known by their place in this list.

    Attributes:
        dtype: The type that holds the tokens of all shards.
    """

    def __init__(self, shards: Sequence[ShardInfo]) -> None:
        self._shards = list(shards)
        self.dtype = np.result_type(*{info.dtype for info in shards})
        self._is_uniform = len({info.dtype for info in shards}) == 1
        self._begins = np.array([info.begin_bytes for info in shards], dtype=np.int64)
        self._open: OrderedDict[int, Tokens] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[OpenShards], tuple[list[ShardInfo]]]:
        return OpenShards, (self._shards,)

    def read(self, shard_numbers: IntArray, offsets: IntArray, lengths: IntArray | int) -> TokenArray:
        """The tokens of ranges of shards, one range after the other: shape (sum of lengths,), read-only.

        They keep the type of the shards (the widest of them): widening 2 bytes to 8 is the larger
        half of the work, and the caller does it once, into the array that it returns.

        Args:
            shard_numbers: Shard of each range, (B,).
            offsets: Token offset of each range, (B,).
            lengths: Tokens of each range, (B,), or of every range.

        Raises:
            DataError: A shard is gone, was cut short, or cannot be read.
        """
        numbers = shard_numbers.tolist()
        opened = {shard: self._tokens(shard) for shard in set(numbers)}
        if self._is_uniform:
            # The system calls are most of this time; ranges that are not whole are read again, below, to say why.
            width, descriptors = self.dtype.itemsize, {shard: tokens.descriptor for shard, tokens in opened.items()}
            if isinstance(lengths, int):
                sizes, num_bytes = itertools.repeat(lengths * width), len(numbers) * lengths * width
            else:
                sizes, num_bytes = iter((lengths * width).tolist()), int(lengths.sum()) * width
            places = (self._begins[shard_numbers] + offsets * width).tolist()
            with suppress(OSError):
                found = b"".join(map(os.pread, map(descriptors.__getitem__, numbers), sizes, places))
                if len(found) == num_bytes:
                    return np.frombuffer(found, self.dtype)
        ranges = zip(numbers, offsets.tolist(), np.broadcast_to(lengths, offsets.shape).tolist(), strict=True)
        parts = [opened[shard][offset : offset + length] for shard, offset, length in ranges]
        return np.concatenate(parts).astype(self.dtype, copy=False)

    def _tokens(self, shard: int) -> Tokens:
        """All tokens of a shard; one that is dropped here stays open for a thread that is reading it."""
        with self._lock:
            tokens = self._open.pop(shard, None)
            if tokens is None:
                tokens = Tokens(self._shards[shard])
                if len(self._open) >= _MAX_OPEN_SHARDS:
                    self._open.popitem(last=False)
            self._open[shard] = tokens
            return tokens


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
        self._begins = self._ends - self.samples_per_shard

    def locate(self, sample_ids: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Shard numbers (B,) and token offsets (B,) of the samples `sample_ids` (B,)."""
        shards = np.searchsorted(self._ends, sample_ids, side="right")
        return shards, (sample_ids - self._begins[shards]) * self._seq_len


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
        return np.searchsorted(self._ends, sample_ids, side="right"), self._starts[sample_ids]


def refuse_outside(sample_ids: Int64Array, num_samples: int) -> None:
    """Refuse ids that are not in 0 to `num_samples` - 1.

    Raises:
        IndexError: There is one.
    """
    # As unsigned numbers, negative ones are the largest: one pass for both bounds.
    if sample_ids.size and int(sample_ids.view(np.uint64).max()) >= num_samples:
        raise IndexError(f"sample ids go from 0 to {num_samples - 1}")


def mark_documents(input_ids: Int64Array, bos_id: int) -> tuple[Int64Array, Int64Array]:
    """Positions that start again at each document, and numbers of the documents.

    What precedes the first BOS token of a sample is the end of a document, and counts as one.

    Args:
        input_ids: Shape (B, T).
        bos_id: Begins a document.

    Returns:
        `position_ids` (B, T), from 0 in each document, and `document_ids` (B, T), from 0 in each sample.

    >>> [found.tolist() for found in mark_documents(np.array([[5, 9, 7, 7, 9]]), bos_id=9)]
    [[[0, 0, 1, 2, 0]], [[0, 1, 1, 1, 2]]]
    """
    begins_one = input_ids == bos_id
    begins_one[:, 0] = True
    return number_documents(np.flatnonzero(begins_one), input_ids.shape)


def number_documents(begins: Int64Array, shape: tuple[int, ...]) -> tuple[Int64Array, Int64Array]:
    """Positions and numbers of documents that lie one behind the other in rows.

    Args:
        begins: Where documents begin in the flattened rows, ascending; every row begins with one.
        shape: Shape of the rows, (B, T).

    Returns:
        As `mark_documents`.
    """
    num_rows, row_tokens = shape
    lengths = np.diff(begins, append=num_rows * row_tokens)
    first_of_row = np.searchsorted(begins, begins - begins % row_tokens)
    position_ids = np.arange(num_rows * row_tokens) - np.repeat(begins, lengths)
    document_ids = np.repeat(np.arange(len(begins)) - first_of_row, lengths)
    return position_ids.reshape(shape), document_ids.reshape(shape)
