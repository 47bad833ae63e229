"""One pass over all bytes of a shard: its hash, how often each token occurs, and where documents begin.

Read in blocks, through ordinary reads: a disk that fails gives an error, not a bus error, and the
memory of the process does not grow with the shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from automodel_cli.engine.shards.tokens import Int64Array, ShardInfo, TokenArray
from automodel_cli.errors import DataError

# Called with the number of bytes that were read since the last call.
OnBytes = Callable[[int], None]

_BLOCK_BYTES = 1 << 23
# Ids of two bytes, and the largest vocabularies in use; a damaged shard of four bytes may hold any number.
_MAX_COUNTED_IDS = 1 << 21


@dataclass(frozen=True)
class ShardScan:
    """What all bytes of one shard say.

    Attributes:
        sha256: Hash of the whole file.
        max_token_id: The largest id; 0 in an empty shard.
        counts: Occurrences of each id below 2,097,152, shape (n,).
        bos_offsets: Token offsets of the BOS tokens, ascending; empty where BOS is not known.
    """

    sha256: str
    max_token_id: int
    counts: Int64Array
    bos_offsets: Int64Array


def scan_shard(info: ShardInfo, bos_id: int | None, on_bytes: OnBytes = lambda _: None) -> ShardScan:
    """Read a whole shard.

    Args:
        info: A shard whose header was found to match the file.
        bos_id: The id that begins a document, if there is one.
        on_bytes: Called after every block.

    Raises:
        DataError: The file cannot be read, or ends before its tokens do.
    """
    digest = hashlib.sha256()
    counts = np.zeros(0, dtype=np.int64)
    found: list[Int64Array] = []
    largest = place = 0
    try:
        with info.path.open("rb") as file:
            digest.update(file.read(info.begin_bytes))
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                tokens = np.frombuffer(block[: len(block) // info.dtype.itemsize * info.dtype.itemsize], info.dtype)
                largest = max(largest, int(tokens.max(initial=0)))
                counts = sum_counts(counts, count_ids(tokens))
                if bos_id is not None:
                    found.append(np.flatnonzero(tokens == bos_id) + place)
                place += len(tokens)
                on_bytes(len(block))
    except OSError as error:
        raise DataError(f"the shard cannot be read: {error.strerror}", where=str(info.path)) from error
    if place != info.num_tokens:
        raise DataError(f"{place:,} tokens were read of {info.num_tokens:,}", where=str(info.path))
    offsets = np.concatenate(found).astype(np.int64) if found else np.zeros(0, dtype=np.int64)
    return ShardScan(digest.hexdigest(), largest, counts, offsets)


def add_counts(scans: list[ShardScan]) -> Int64Array:
    """The occurrences of each id in several shards together."""
    total = np.zeros(0, dtype=np.int64)
    for scan in scans:
        total = sum_counts(total, scan.counts)
    return total


def count_ids(tokens: TokenArray) -> Int64Array:
    """Occurrences of each id below 2,097,152."""
    if tokens.dtype.itemsize != 2 or tokens.dtype.kind == "i":
        tokens = tokens[(tokens >= 0) & (tokens < _MAX_COUNTED_IDS)]
    return np.bincount(tokens).astype(np.int64)


def sum_counts(left: Int64Array, right: Int64Array) -> Int64Array:
    """Two lists of occurrences, of different lengths perhaps, as one."""
    if len(left) < len(right):
        left, right = right, left
    total = left.copy()
    total[: len(right)] += right
    return total


def unigram_entropy_nats(counts: npt.NDArray[np.integer[Any]] | Sequence[int]) -> float:
    """Entropy of the frequencies of tokens, in nats: the loss of the best model without context.

    >>> round(unigram_entropy_nats([1, 1, 0]), 4)
    0.6931
    """
    present = np.asarray(counts, dtype=np.float64)
    present = present[present > 0]
    if not present.size:
        return 0.0
    shares = present / present.sum()
    # max: the sum for a single token is -0.0, which would be printed with its sign.
    return max(0.0, float(-(shares * np.log(shares)).sum()))
