"""The token shard: a header of 256 int32 values, then the tokens and nothing else.

    header[0]   magic: 278895051, or 20240520 for the legacy form
    header[1]   version: 1
    header[2]   number of tokens that follow
    header[3]   bytes per token, 2 or 4 (the legacy form ignores it: always 2)

Everything is little endian. The reader compares the size of the file with its header before
it maps a single token, because a shard that was cut short ends a process that reads it
through a memory map with a bus error, not with an exception.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

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

# What the header says is part of this format, whoever reads it.
__all__ = ["HEADER_BYTES", "LEGACY_MAGIC", "MAGIC", "MAX_SHARD_TOKENS", "VERSION"]

HEADER_INT32S = HEADER_BYTES // 4

TOKEN_DTYPES: dict[int, np.dtype[Any]] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}

TokenArray: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class ShardInfo:
    """What the header of one shard says, after it was found to match the file.

    Attributes:
        path: The shard.
        num_tokens: Tokens in the shard.
        dtype: Little-endian uint16 or uint32.
        magic: `MAGIC` or `LEGACY_MAGIC`; `None` where the file has no header (Megatron's).
        begin_bytes: Where the first token stands in the file.
    """

    path: Path
    num_tokens: int
    dtype: np.dtype[Any]
    magic: int | None
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
    return ShardInfo(path, header.num_tokens, TOKEN_DTYPES[header.token_bytes], header.magic)


def open_tokens(info: ShardInfo) -> TokenArray:
    """Map the tokens of a shard, read-only: shape (num_tokens,).

    The pages are read when they are touched, so opening costs nothing. Do not truncate the
    file while it is mapped.
    """
    if info.num_tokens == 0:
        return np.empty(0, dtype=info.dtype)
    return np.memmap(info.path, dtype=info.dtype, mode="r", offset=info.begin_bytes, shape=(info.num_tokens,))
