"""Reads the header of a token shard and compares it with the size of the file. Standard library only.

The check of a configuration and the reader of shards (`engine.shards.tokens`, which says what the numbers
mean) both use it, so that both refuse the same files in the same words. For a Megatron dataset the sizes of both
files are compared.
"""

from __future__ import annotations

import importlib
import os
import struct
from pathlib import Path
from typing import NamedTuple

from automodel_cli.engine.bounded import UnsoundError, open_regular
from automodel_cli.errors import DataError

MAGIC = 278895051
LEGACY_MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 1024
# The header counts tokens in an int32, and so does the index of BOS offsets.
MAX_SHARD_TOKENS = 2**31 - 1
MEGATRON_HEADER = struct.Struct("<9sQBQQ")
MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
MEGATRON_VERSION = 1
# Types of tokens by their code in the index, as numpy spells them.
MEGATRON_TYPES = {1: "|u1", 2: "|i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}


class ShardHeader(NamedTuple):
    """What the header says: the form of the shard, its tokens, and the bytes of each (2 or 4)."""

    magic: int
    num_tokens: int
    token_bytes: int


def shard_header(path: Path) -> ShardHeader:
    """Reads a header and checks it against the size of the file.

    Raises:
        DataError: The file cannot be read, is shorter than a header, has another magic or
            version, names a token size other than 2 or 4, or its size is not what the header says.
    """
    try:
        with open_regular(path) as file:
            raw = file.read(HEADER_BYTES)
            file_bytes = os.fstat(file.fileno()).st_size
    except UnsoundError as error:
        raise DataError(f"the shard cannot be read: {error}", where=str(path)) from error
    except OSError as error:
        raise DataError(f"the shard cannot be read: {error.strerror}", where=str(path)) from error
    magic, version, num_tokens, token_bytes = struct.unpack_from("<4i", raw.ljust(16, b"\0"))
    if len(raw) < HEADER_BYTES or magic not in (MAGIC, LEGACY_MAGIC):
        raise _no_shard(path, file_bytes, magic if len(raw) == HEADER_BYTES else None)
    if version != VERSION:
        raise DataError(f"the shard has format version {version}, but only version {VERSION} is known", where=str(path))
    token_bytes = 2 if magic == LEGACY_MAGIC else token_bytes
    if token_bytes not in (2, 4):
        raise DataError(f"the header says {token_bytes} bytes per token, but only 2 and 4 are known", where=str(path))
    if num_tokens < 0:
        raise DataError(
            f"the header counts {num_tokens:,} tokens: the writer overflowed its 32-bit counter",
            where=str(path),
            help=f"a shard holds at most {MAX_SHARD_TOKENS:,} tokens; prepare the data again in several shards",
        )
    expected_bytes = HEADER_BYTES + num_tokens * token_bytes
    if file_bytes != expected_bytes:
        raise DataError(
            f"the file has {file_bytes:,} bytes, but its header promises {num_tokens:,} tokens of "
            f"{token_bytes} bytes after {HEADER_BYTES:,} of header = {expected_bytes:,}",
            where=str(path),
            help="the shard was cut short or is still being written; copy or prepare it again",
        )
    return ShardHeader(magic, num_tokens, token_bytes)


def shard_tokens(path: Path) -> int:
    """The tokens of a whole shard of any format that `NanogptDataset` reads.

    Raises:
        DataError: As `shard_header`, or as the format has it.
    """
    try:
        return shard_header(path).num_tokens
    except DataError:
        # The table of formats lies above this package and needs numpy, so only a file that is refused here loads it.
        formats = importlib.import_module("automodel_cli.engine.shards.formats")
        return int(formats.read_shard(path, "NanogptDataset").num_tokens)


def _no_shard(path: Path, file_bytes: int, magic: int | None) -> DataError:
    if magic is None:
        message = f"the file has {file_bytes:,} bytes, but a shard begins with a header of {HEADER_BYTES:,}"
        help_ = "this is no token shard, or writing it was interrupted; `amcli prep` makes it again"
    else:
        message = f"the file begins with {magic}, but a token shard begins with {MAGIC} or {LEGACY_MAGIC} (legacy)"
        help_ = "give file_pattern the .bin files that `amcli prep` writes"
    if path.with_suffix(".idx").is_file():
        help_ = "an .idx lies beside it: read this one with MegatronPretraining"
    return DataError(message, where=str(path), help=help_)


def megatron_header(index: Path, raw: bytes) -> tuple[str, int, int]:
    """The type of the tokens, the number of sequences and that of document indices, as the index `raw` begins.

    Raises:
        DataError: It is of another kind or version, or its tokens are not integers.
    """
    if len(raw) < MEGATRON_HEADER.size or not raw.startswith(MEGATRON_MAGIC):
        raise DataError(
            f"the file does not begin with {MEGATRON_MAGIC!r}, so it is no Megatron index",
            where=str(index),
            help="`paths` names the .bin and .idx of an indexed dataset, without the ending",
        )
    _, version, code, num_sequences, num_indices = MEGATRON_HEADER.unpack_from(raw)
    if version != MEGATRON_VERSION:
        message = f"the index has version {version}, but only version {MEGATRON_VERSION} is known"
        raise DataError(message, where=str(index))
    if code not in MEGATRON_TYPES:
        known = "1 uint8, 2 int8, 3 int16, 4 int32, 5 int64, 8 uint16"
        raise DataError(f"the index says type {code}, but tokens are one of {known}", where=str(index))
    return MEGATRON_TYPES[code], num_sequences, num_indices


def megatron_tokens(path: Path) -> int:
    """The tokens of a Megatron `.bin`, whose size is held against the last sequence of the `.idx` beside it.

    Raises:
        DataError: One of them cannot be read, the index is no such index, or the sizes differ.
    """
    index = path.with_suffix(".idx")
    again = "one of the files was cut short or is still being written, or they are not of one run; prepare them again"
    try:
        with open_regular(index) as file:
            token_type, sequences, documents = megatron_header(index, file.read(MEGATRON_HEADER.size))
            token_bytes = int(token_type[-1])
            index_bytes = index.stat().st_size
            end = MEGATRON_HEADER.size + 12 * sequences + 8 * documents
            # Multimodal writers append one byte per sequence.
            if not sequences or index_bytes not in (end, end + sequences):
                message = f"{index.name} has {index_bytes:,} bytes, but its {sequences:,} sequences need {end:,}"
                raise DataError(message, where=str(index), help=again)
            file.seek(MEGATRON_HEADER.size + 4 * (sequences - 1))
            length_of_last = int.from_bytes(file.read(4), "little")
            file.seek(MEGATRON_HEADER.size + 4 * sequences + 8 * (sequences - 1))
            begin = int.from_bytes(file.read(8), "little")
        file_bytes = path.stat().st_size
    except UnsoundError as error:
        raise DataError(f"the Megatron dataset cannot be read: {error}", where=str(index)) from error
    except OSError as error:
        message = f"the Megatron dataset cannot be read: {error.strerror}"
        raise DataError(message, where=str(error.filename or index)) from error
    expected_bytes = begin + length_of_last * token_bytes
    if file_bytes != expected_bytes:
        message = f"the file has {file_bytes:,} bytes, but the sequences of {index.name} end at {expected_bytes:,}"
        raise DataError(message, where=str(path), help=again)
    return file_bytes // token_bytes
