"""Reads windows of tokens from memory-mapped shards, many at a time.

Maps are opened when they are first needed and the least recently used ones are closed, so a
data set of thousands of shards stays below the limit of open files. Safe to call from several
threads, and picklable: a copy in another process opens its own maps.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from automodel_cli.engine.config.suggest import command
from automodel_cli.engine.shards.format import ShardInfo, TokenArray, open_tokens
from automodel_cli.errors import DataError

# Each map holds a file descriptor; 1,024 is the usual limit of a process.
_MAX_OPEN_SHARDS = 256
_LEAST_ROWS_OF_A_GATHER = 8
# How often the lengths of open files are compared, so that it costs nothing beside reading them.
_SECONDS_BETWEEN_LOOKS = 1.0


class OpenShards:
    """Maps of shards: opened when first needed, the least recently used closed.

    A file that is cut while it is mapped would end the process by SIGBUS, without a word, at the first token
    that is gone. So the lengths of the open files are looked at now and then. One that is deleted or replaced
    under its name stays mapped as it was.

    Args:
        shards: The shards, which are known by their place in this list.
    """

    def __init__(self, shards: Sequence[ShardInfo]) -> None:
        self._shards = list(shards)
        self._open: OrderedDict[int, TokenArray] = OrderedDict()
        self._files: dict[int, os.stat_result] = {}
        self._next_look = 0.0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[OpenShards], tuple[list[ShardInfo]]]:
        return OpenShards, (self._shards,)

    def tokens(self, shard: int) -> TokenArray:
        """All tokens of a shard, shape (num_tokens,).

        Raises:
            DataError: Its file is gone, or is not as long as it was.
        """
        with self._lock:
            if time.monotonic() >= self._next_look:
                self._look()
            tokens = self._open.pop(shard, None)
            if tokens is None:
                # A plain array over the map: slices of a memmap carry its bookkeeping along, which costs
                # more than the copy of a short document.
                tokens = np.asarray(self._opened(shard))
                if len(self._open) >= _MAX_OPEN_SHARDS:
                    closed, _ = self._open.popitem(last=False)
                    del self._files[closed]
            self._open[shard] = tokens
            return tokens

    def _opened(self, shard: int) -> TokenArray:
        info = self._shards[shard]
        try:
            self._files[shard] = info.path.stat()
            return open_tokens(info)
        except (OSError, ValueError) as error:  # numpy: the file is shorter than the array
            raise _changed(info, f"it cannot be read any more: {error}") from error

    def _look(self) -> None:
        for shard, before in self._files.items():
            info = self._shards[shard]
            try:
                now = info.path.stat()
            except OSError:
                continue
            if os.path.samestat(before, now) and now.st_size != before.st_size:
                raise _changed(info, f"it had {before.st_size:,} bytes, and has {now.st_size:,} now")
        self._next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS


def _changed(info: ShardInfo, how: str) -> DataError:
    return DataError(
        f"the shard changed while it was being read: {how}",
        where=str(info.path),
        help="put it back as it was and resume the run; "
        f"`{command('data', 'verify', info.path.parent)}` compares every byte",
    )


class TokenWindows:
    """Windows of a fixed length in a list of shards.

    Args:
        shards: The shards, each at least `window_tokens` long where it is read.
        window_tokens: Tokens in a window.
    """

    def __init__(self, shards: Sequence[ShardInfo], window_tokens: int) -> None:
        self._open = OpenShards(shards)
        self._window_tokens = window_tokens
        self._dtype = np.result_type(*{info.dtype for info in shards})

    def read(self, shard_numbers: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]) -> TokenArray:
        """The windows that begin at `offsets` (B,) of `shard_numbers` (B,), shape (B, window_tokens).

        They keep the type of the shards (the widest of them): widening 2 bytes to 8 is the
        larger half of the work, and the caller does it once, into the array that it returns.
        """
        shards = set(shard_numbers.tolist())
        opened = {shard: self._open.tokens(shard) for shard in shards}
        if len(shards) == 1:
            return self._all_of(opened[shards.pop()])[offsets].astype(self._dtype, copy=False)
        windows = np.empty((len(offsets), self._window_tokens), dtype=self._dtype)
        if len(shards) * _LEAST_ROWS_OF_A_GATHER <= len(offsets):
            for shard, tokens in opened.items():
                chosen = shard_numbers == shard
                windows[chosen] = self._all_of(tokens)[offsets[chosen]]
            return windows
        # Where nearly every row comes from another shard, setting up a gather costs more than copying a row.
        for row, (shard, offset) in enumerate(zip(shard_numbers.tolist(), offsets.tolist(), strict=True)):
            windows[row] = opened[shard][offset : offset + self._window_tokens]
        return windows

    def _all_of(self, tokens: TokenArray) -> TokenArray:
        """Every window of a shard, shape (num_tokens - window_tokens + 1, window_tokens): a view that overlaps itself.

        Rows of it are gathered by one call; numpy's own `sliding_window_view` takes longer than the gather.
        """
        step = tokens.itemsize
        shape = (len(tokens) - self._window_tokens + 1, self._window_tokens)
        return np.ndarray(shape, tokens.dtype, tokens, 0, (step, step))
