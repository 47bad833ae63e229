"""Reads windows of tokens from memory-mapped shards, many at a time.

Maps are opened when they are first needed and the least recently used ones are closed, so a
data set of thousands of shards stays below the limit of open files. Safe to call from several
threads, and picklable: a copy in another process opens its own maps.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from automodel_cli.engine.shards.format import ShardInfo, TokenArray, open_tokens

# Each map holds a file descriptor; 1,024 is the usual limit of a process.
_MAX_OPEN_SHARDS = 256


class TokenWindows:
    """Windows of a fixed length in a list of shards.

    Args:
        shards: The shards, each at least `window_tokens` long where it is read.
        window_tokens: Tokens in a window.
    """

    def __init__(self, shards: Sequence[ShardInfo], window_tokens: int) -> None:
        self._shards = list(shards)
        self._window_tokens = window_tokens
        self._open: OrderedDict[int, TokenArray] = OrderedDict()
        self._lock = threading.Lock()
        self._dtype = np.result_type(*{info.dtype for info in self._shards})

    def __reduce__(self) -> tuple[type[TokenWindows], tuple[list[ShardInfo], int]]:
        return TokenWindows, (self._shards, self._window_tokens)

    def read(self, shard_numbers: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]) -> TokenArray:
        """The windows that begin at `offsets` (B,) of `shard_numbers` (B,), shape (B, window_tokens).

        They keep the type of the shards (the widest of them): widening 2 bytes to 8 is the
        larger half of the work, and the caller does it once, into the array that it returns.
        """
        windows = np.empty((len(offsets), self._window_tokens), dtype=self._dtype)
        for shard in np.unique(shard_numbers):
            rows = np.flatnonzero(shard_numbers == shard)
            # One gather per shard, which copies whole rows.
            windows[rows] = self._views(int(shard))[offsets[rows]]
        return windows

    def _views(self, shard: int) -> TokenArray:
        """All windows of a shard as a view without copies, shape (num_tokens - window_tokens + 1, window_tokens)."""
        with self._lock:
            views = self._open.pop(shard, None)
            if views is None:
                tokens = open_tokens(self._shards[shard])
                views = np.lib.stride_tricks.sliding_window_view(tokens, self._window_tokens)
                if len(self._open) >= _MAX_OPEN_SHARDS:
                    self._open.popitem(last=False)
            self._open[shard] = views
            return views
