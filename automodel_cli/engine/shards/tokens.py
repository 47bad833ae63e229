"""The token shard: a header of 256 int32 values, then the tokens and nothing else.

    header[0]   magic: 278895051, or 20240520 for the legacy form
    header[1]   version: 1
    header[2]   number of tokens that follow
    header[3]   bytes per token, 2 or 4 (the legacy form ignores it: always 2)

Everything is little endian. Tokens are read by `pread`, never through a memory map: a shard that is cut
short, or a disk that fails, under a map ends the process by SIGBUS, without a word (docs/adr/0030).
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from automodel_cli.engine.config.shard_header import (
    HEADER_BYTES,
    LEGACY_MAGIC,
    MAGIC,
    MAX_SHARD_TOKENS,
    VERSION,
    shard_header,
)
from automodel_cli.engine.config.suggest import command
from automodel_cli.errors import DataError

# The header's numbers are part of this format, so readers of tokens import them from here.
__all__ = ["HEADER_BYTES", "LEGACY_MAGIC", "MAGIC", "MAX_SHARD_TOKENS", "VERSION"]

HEADER_INT32S = HEADER_BYTES // 4

TOKEN_DTYPES: dict[int, np.dtype[Any]] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}

# Single tokens are looked up in blocks of this size.
_BLOCK_TOKENS = 1 << 20

Int64Array: TypeAlias = npt.NDArray[np.int64]
TokenArray: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class ShardInfo:
    """What the header of one shard says, after it was found to match the file.

    Attributes:
        path: The shard.
        num_tokens: Tokens in the shard.
        dtype: Little-endian uint16 or uint32.
        format: Name of its format, a key of `formats.FORMATS`.
        begin_bytes: Where the first token stands in the file.
    """

    path: Path
    num_tokens: int
    dtype: np.dtype[Any]
    format: str = "bin"
    begin_bytes: int = HEADER_BYTES


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest token type that holds every id below `vocab_size`.

    >>> token_dtype(50_257).itemsize, token_dtype(65_536).itemsize, token_dtype(65_537).itemsize
    (2, 2, 4)
    """
    return TOKEN_DTYPES[2 if vocab_size <= 2**16 else 4]


def build_header(num_tokens: int, dtype: np.dtype[Any], *, legacy: bool = False) -> bytes:
    """The header of a shard with `num_tokens` tokens of type `dtype`, as `HEADER_BYTES` bytes.

    Args:
        num_tokens: Tokens that follow.
        dtype: Their type.
        legacy: The form 20240520, whose tokens have 2 bytes without saying so.
    """
    header = np.zeros(HEADER_INT32S, dtype="<i4")
    header[:4] = (LEGACY_MAGIC, VERSION, num_tokens, 0) if legacy else (MAGIC, VERSION, num_tokens, dtype.itemsize)
    return header.tobytes()


def read_shard_header(path: Path | str) -> ShardInfo:
    """Read the header of a shard and check it against the size of the file.

    Raises:
        DataError: As `shard_header`.
    """
    path = Path(path)
    header = shard_header(path)
    name = "legacy" if header.magic == LEGACY_MAGIC else "bin"
    return ShardInfo(path, header.num_tokens, TOKEN_DTYPES[header.token_bytes], name)


class Tokens:
    """The tokens of an open shard, read when they are asked for; safe to use from several threads.

    `len(tokens)`, `tokens[3]`, `tokens[2:9]` and `tokens[offsets]` are those of an array of shape (num_tokens,).
    A file that is deleted, or replaced under its name, stays as it was when it was opened.

    Args:
        info: The shard.

    Attributes:
        descriptor: File descriptor, open as long as this object lives.

    Raises:
        DataError: Now or when tokens are read: the file is gone, ends before its tokens do, or its disk fails.
    """

    def __init__(self, info: ShardInfo) -> None:
        self.descriptor = -1
        self._info, self._dtype = info, info.dtype
        try:
            self.descriptor = os.open(info.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._changed(f"it cannot be read any more: {error.strerror}") from error

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def __len__(self) -> int:
        return self._info.num_tokens

    @overload
    def __getitem__(self, place: int) -> np.unsignedinteger[Any]: ...

    @overload
    def __getitem__(self, place: slice | Int64Array) -> TokenArray: ...

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            begin, end, step = place.indices(len(self))
            if step != 1:
                raise ValueError(f"a shard is read without gaps, not in steps of {step}")
            return np.frombuffer(self.raw(begin, max(end - begin, 0)), self._dtype)
        if isinstance(place, np.ndarray):
            return self._at(place)
        begin = range(len(self))[place]  # as an array has it, negative places too
        return np.frombuffer(self.raw(begin, 1), self._dtype)[0]

    def raw(self, begin: int, num_tokens: int) -> bytes:
        """The bytes of `num_tokens` tokens; `begin` and the end must lie in the shard."""
        size = num_tokens * self._dtype.itemsize
        place = self._info.begin_bytes + begin * self._dtype.itemsize
        try:
            found = os.pread(self.descriptor, size, place)
            # Some systems and file systems give less than is there at a time.
            while len(found) < size and (more := os.pread(self.descriptor, size - len(found), place + len(found))):
                found += more
        except OSError as error:
            raise self._changed(f"it cannot be read any more: {error.strerror}") from error
        if len(found) < size:
            now = os.fstat(self.descriptor).st_size
            needed = self._info.begin_bytes + self._info.num_tokens * self._dtype.itemsize
            raise self._changed(f"it has {now:,} bytes now, and its tokens need {needed:,}")
        return found

    def _at(self, offsets: Int64Array) -> TokenArray:
        """Single tokens, read block by block: their order in the file is not that of `offsets`, if need be."""
        order = np.argsort(offsets, kind="stable")
        ascending = offsets[order]
        bounds = np.searchsorted(ascending, np.arange(0, len(self) + _BLOCK_TOKENS, _BLOCK_TOKENS))
        found = np.empty(len(offsets), self._dtype)
        for first, end in itertools.pairwise(bounds.tolist()):
            if first < end:
                begin = int(ascending[first])
                found[order[first:end]] = self[begin : int(ascending[end - 1]) + 1][ascending[first:end] - begin]
        return found

    def _changed(self, how: str) -> DataError:
        return DataError(
            f"the shard changed while it was being read: {how}",
            where=str(self._info.path),
            help="put it back as it was and resume the run; "
            f"`{command('data', 'verify', self._info.path.parent)}` compares every byte",
        )
