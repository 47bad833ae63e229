"""Reads windows of tokens from shards, many at a time.

Shards are opened when they are first needed and the least recently used ones are closed, so a
data set of thousands of shards stays below the limit of open files. Safe to call from several
threads, and picklable: a copy in another process opens its own files.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from automodel_cli.engine.shards.tokens import ShardInfo, TokenArray, Tokens, open_tokens

IntArray: TypeAlias = npt.NDArray[np.integer[Any]]

# Each holds a file descriptor; 1,024 is the usual limit of a process.
_MAX_OPEN_SHARDS = 256


class OpenShards:
    """Open shards: opened when first needed, the least recently used closed.

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

    def read(self, shard_numbers: IntArray, offsets: IntArray, lengths: IntArray) -> TokenArray:
        """The tokens of ranges of shards, one range behind the other: shape (sum of lengths,), read-only.

        Raises:
            DataError: A shard is gone, was cut short, or cannot be read.
        """
        numbers = shard_numbers.tolist()
        opened = {shard: self._tokens(shard) for shard in set(numbers)}
        if self._is_uniform:
            # Less than a microsecond for each range; what is not whole is read once more, below, to say why.
            width, descriptors = self.dtype.itemsize, {shard: tokens.descriptor for shard, tokens in opened.items()}
            sizes, places = lengths * width, self._begins[shard_numbers] + offsets * width
            arguments = (map(descriptors.__getitem__, numbers), sizes.tolist(), places.tolist())
            with suppress(OSError):
                found = b"".join(map(os.pread, *arguments))
                if len(found) == sizes.sum():
                    return np.frombuffer(found, self.dtype)
        ranges = zip(numbers, offsets.tolist(), lengths.tolist(), strict=True)
        parts = [opened[shard][offset : offset + length] for shard, offset, length in ranges]
        return np.concatenate(parts).astype(self.dtype, copy=False)

    def _tokens(self, shard: int) -> Tokens:
        """All tokens of a shard; one that is dropped here stays open for whoever is reading it."""
        with self._lock:
            tokens = self._open.pop(shard, None)
            if tokens is None:
                tokens = open_tokens(self._shards[shard])
                if len(self._open) >= _MAX_OPEN_SHARDS:
                    self._open.popitem(last=False)
            self._open[shard] = tokens
            return tokens


class TokenWindows:
    """Windows of a fixed length in a list of shards.

    Args:
        shards: The shards, each at least `window_tokens` long where it is read.
        window_tokens: Tokens in a window.
    """

    def __init__(self, shards: Sequence[ShardInfo], window_tokens: int) -> None:
        self._open = OpenShards(shards)
        self._window_tokens = window_tokens

    def read(self, shard_numbers: IntArray, offsets: IntArray) -> TokenArray:
        """The windows that begin at `offsets` (B,) of `shard_numbers` (B,), shape (B, window_tokens), read-only.

        They keep the type of the shards (the widest of them): widening 2 bytes to 8 is the
        larger half of the work, and the caller does it once, into the array that it returns.

        Raises:
            DataError: A shard is gone, was cut short, or cannot be read.
        """
        lengths = np.full(len(offsets), self._window_tokens, dtype=np.int64)
        return self._open.read(shard_numbers, offsets, lengths).reshape(len(offsets), self._window_tokens)
