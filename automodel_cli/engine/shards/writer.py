"""Writes tokens into shards that roll over at a fixed number of tokens.

A shard appears under its name only when it is complete and flushed. Every id is checked
before it is narrowed to the shard's type, where a larger one would silently become another
token. There is no limit on the size of the data set, only on the size of one shard.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from automodel_cli.engine.shards.bos_index import bos_index_path
from automodel_cli.engine.shards.durable import explain_write_errors, replace_durably, temporary_path, write_durably
from automodel_cli.engine.shards.format import MAX_SHARD_TOKENS, build_header
from automodel_cli.engine.shards.manifest import ShardRecord
from automodel_cli.errors import ConfigError, DataError


def shard_name(split: str, index: int) -> str:
    """File name of a shard.

    >>> shard_name("train", 7)
    'train_000007.bin'
    """
    return f"{split}_{index:06d}.bin"


class ShardWriter:
    """Writes the shards of one split, in order.

    As a context manager it removes the unfinished shard when the body raises; `close` is
    called by the user, because it returns the records.

    Args:
        directory: Exists already.
        split: `train` or `val`; begins the file names.
        dtype: uint16 or uint32.
        shard_tokens: Every shard but the last holds exactly this many tokens.
        bos_id: The id whose offsets go into the index; `None` writes no index.

    Raises:
        ConfigError: `shard_tokens` is not in 1 to 2,147,483,647.
    """

    def __init__(
        self, directory: Path, split: str, dtype: np.dtype[Any], shard_tokens: int, bos_id: int | None
    ) -> None:
        if not 1 <= shard_tokens <= MAX_SHARD_TOKENS:
            raise ConfigError(
                f"a shard cannot have {shard_tokens:,} tokens: its header counts them in 32 bits, "
                f"so the number must be in 1 to {MAX_SHARD_TOKENS:,}"
            )
        self._directory = directory
        self._split = split
        self._dtype = dtype
        self._shard_tokens = shard_tokens
        self._bos_id = bos_id
        self._records: list[ShardRecord] = []
        self._file: BinaryIO | None = None
        self._num_tokens = 0
        self._max_token_id = 0
        self._bos_offsets: list[npt.NDArray[np.int64]] = []

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def write(self, tokens: npt.NDArray[np.integer[Any]]) -> None:
        """Append tokens, shape (n,), of any integer type.

        Raises:
            DataError: An id does not fit the shard's type, or the disk is full.
        """
        self._check_range(tokens)
        while len(tokens):
            space = self._shard_tokens - self._num_tokens
            self._append(tokens[:space])
            tokens = tokens[space:]
            if self._num_tokens == self._shard_tokens:
                self._finish_shard()

    def close(self) -> list[ShardRecord]:
        """Finish the last shard and return all records, in order; empty if nothing was written."""
        if self._file is not None:
            self._finish_shard()
        return list(self._records)

    def discard(self) -> None:
        """Remove the unfinished shard, if there is one; finished shards stay."""
        if self._file is not None:
            # Closing flushes once more, which fails again when the disk is full.
            with suppress(OSError):
                self._file.close()
            self._file = None
            temporary_path(self._path).unlink(missing_ok=True)

    @property
    def _path(self) -> Path:
        return self._directory / shard_name(self._split, len(self._records))

    def _header(self, num_tokens: int) -> bytes:
        """What stands before the tokens; its length is the same for any number of them."""
        return build_header(num_tokens, self._dtype)

    def _write_index(self, path: Path, bos_offsets: npt.NDArray[np.int64], num_tokens: int) -> None:
        """Write what says where the documents of the shard `path` begin."""
        write_durably(bos_index_path(path), bos_offsets.astype("<i4").tobytes())

    def _check_range(self, tokens: npt.NDArray[np.integer[Any]]) -> None:
        if not len(tokens):
            return
        smallest, largest = int(tokens.min()), int(tokens.max())
        limit = int(np.iinfo(self._dtype).max)
        if smallest < 0 or largest > limit:
            raise DataError(
                f"token id {smallest if smallest < 0 else largest:,} does not fit {self._dtype.name} (0 to {limit:,})",
                where=str(self._path),
                help="the tokenizer's vocab_size is smaller than the ids it gives",
            )

    def _append(self, tokens: npt.NDArray[np.integer[Any]]) -> None:
        with explain_write_errors(self._path):
            if self._file is None:
                self._file = temporary_path(self._path).open("wb")
                self._file.write(bytes(len(self._header(0))))
            self._file.write(tokens.astype(self._dtype).tobytes())
        if self._bos_id is not None:
            self._bos_offsets.append(np.flatnonzero(tokens == self._bos_id) + self._num_tokens)
        self._max_token_id = max(self._max_token_id, int(tokens.max()))
        self._num_tokens += len(tokens)

    def _finish_shard(self) -> None:
        if self._file is None:
            return
        path = self._path
        with explain_write_errors(path):
            # The header is written last: only now is the number of tokens known.
            header = self._header(self._num_tokens)
            self._file.seek(0)
            self._file.write(header)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            # Read back what was written rather than hash what was meant to be written.
            with temporary_path(path).open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        num_bytes = len(header) + self._num_tokens * self._dtype.itemsize
        if self._bos_id is not None:
            self._write_index(path, np.concatenate(self._bos_offsets), self._num_tokens)
        with explain_write_errors(path):
            replace_durably(path)
        self._records.append(ShardRecord(path.name, self._num_tokens, num_bytes, sha256, self._max_token_id))
        self._file, self._num_tokens, self._max_token_id, self._bos_offsets = None, 0, 0, []
