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

from automodel_cli.errors import DataError

MAGIC = 278895051
LEGACY_MAGIC = 20240520
VERSION = 1
HEADER_INT32S = 256
HEADER_BYTES = HEADER_INT32S * 4
# The header counts tokens in an int32, and so does the index of BOS offsets.
MAX_SHARD_TOKENS = 2**31 - 1

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
        DataError: The file cannot be read, is shorter than a header, has another magic or
            version, names a token size other than 2 or 4, or its size is not what the header says.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = file.read(HEADER_BYTES)
        file_bytes = path.stat().st_size
    except OSError as error:
        raise DataError(f"the shard cannot be read: {error.strerror}", where=str(path)) from error
    if len(raw) < HEADER_BYTES:
        raise DataError(
            f"the file has {file_bytes:,} bytes, but a shard begins with a header of {HEADER_BYTES:,}",
            where=str(path),
            help="this is no token shard, or writing it was interrupted: prepare the data again",
        )
    magic, version, num_tokens, itemsize = (int(value) for value in np.frombuffer(raw, dtype="<i4", count=4))
    if magic not in (MAGIC, LEGACY_MAGIC):
        raise DataError(
            f"the file begins with {magic}, but a token shard begins with {MAGIC} or {LEGACY_MAGIC} (legacy)",
            where=str(path),
            help=_other_format(path),
        )
    if version != VERSION:
        raise DataError(f"the shard has format version {version}, but only version {VERSION} is known", where=str(path))
    dtype = _dtype_of(path, magic, itemsize)
    if num_tokens < 0:
        raise DataError(
            f"the header counts {num_tokens:,} tokens: the writer overflowed its 32-bit counter",
            where=str(path),
            help=f"a shard holds at most {MAX_SHARD_TOKENS:,} tokens; prepare the data again in several shards",
        )
    expected_bytes = HEADER_BYTES + num_tokens * dtype.itemsize
    if file_bytes != expected_bytes:
        raise DataError(
            f"the file has {file_bytes:,} bytes, but its header promises {num_tokens:,} tokens of "
            f"{dtype.itemsize} bytes after {HEADER_BYTES:,} of header = {expected_bytes:,}",
            where=str(path),
            help="the shard was cut short or is still being written; copy or prepare it again",
        )
    return ShardInfo(path, num_tokens, dtype, magic)


def _other_format(path: Path) -> str:
    if path.with_suffix(".idx").is_file():
        return "an .idx lies beside it: read this one with MegatronPretraining"
    return "give file_pattern the .bin files that `amcli prep` writes"


def _dtype_of(path: Path, magic: int, itemsize: int) -> np.dtype[Any]:
    if magic == LEGACY_MAGIC:
        return TOKEN_DTYPES[2]
    if itemsize not in TOKEN_DTYPES:
        raise DataError(f"the header says {itemsize} bytes per token, but only 2 and 4 are known", where=str(path))
    return TOKEN_DTYPES[itemsize]


def open_tokens(info: ShardInfo) -> TokenArray:
    """Map the tokens of a shard, read-only: shape (num_tokens,).

    The pages are read when they are touched, so opening costs nothing. Do not truncate the
    file while it is mapped.
    """
    if info.num_tokens == 0:
        return np.empty(0, dtype=info.dtype)
    return np.memmap(info.path, dtype=info.dtype, mode="r", offset=info.begin_bytes, shape=(info.num_tokens,))
