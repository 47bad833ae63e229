"""Writes tokens into shards that roll over at a fixed number of tokens.

A shard appears under its name only when it is complete and flushed. Every id is checked
before it is narrowed to the shard's type, where a larger one would silently become another
token. There is no limit on the size of the data set, only on the size of one shard.

An unfinished shard stands under a hidden name. Another process can continue it there (`continue_from`), with
the same bytes in the end, if it knows how many tokens are safe on the disk.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from automodel_cli.engine.durable import explain_write_errors, replace_durably, temporary_path, write_durably
from automodel_cli.engine.shards.manifest import ShardRecord
from automodel_cli.engine.shards.shard_format import ShardFormat
from automodel_cli.engine.shards.tokens import MAX_SHARD_TOKENS, Int64Array, TokenArray
from automodel_cli.errors import ConfigError, DataError

_BLOCK_BYTES = 1 << 25
_DEFAULT_FORMAT = ShardFormat()


def shard_name(split: str, index: int) -> str:
    """File name of a shard.

    >>> shard_name("train", 7)
    'train_000007.bin'
    """
    return f"{split}_{index:06d}.bin"


Run = Callable[[Callable[[], ShardRecord]], "Future[ShardRecord]"]


def run_now(task: Callable[[], ShardRecord]) -> Future[ShardRecord]:
    """Finish a shard at once, in this thread."""
    done: Future[ShardRecord] = Future()
    done.set_result(task())
    return done


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
        form: The format of the files.

    Attributes:
        run: Runs what is left to do when a shard is full, in the order of the shards: hashing and
            flushing to the disk take long, so a thread of its own may do it.
        source_cursor: Goes into the record of each shard that is finished.
        bos_is_eos: Whether the BOS token ends documents too, for formats that list documents.

    Raises:
        ConfigError: `shard_tokens` is not in 1 to 2,147,483,647, or the format cannot hold the tokens.
    """

    def __init__(
        self,
        directory: Path,
        split: str,
        dtype: np.dtype[Any],
        shard_tokens: int,
        bos_id: int | None,
        form: ShardFormat = _DEFAULT_FORMAT,
    ) -> None:
        if not 1 <= shard_tokens <= MAX_SHARD_TOKENS:
            raise ConfigError(
                f"a shard cannot have {shard_tokens:,} tokens: its header counts them in 32 bits, "
                f"so the number must be in 1 to {MAX_SHARD_TOKENS:,}"
            )
        self.run: Run = run_now
        self.source_cursor: str | None = None
        self.bos_is_eos = False
        self._directory = directory
        self._split = split
        self._format = form
        self._dtype = form.stored_dtype(dtype, bos_id)
        self._shard_tokens = shard_tokens
        self._bos_id = bos_id
        self._records: list[Future[ShardRecord]] = []
        self._file: BinaryIO | None = None
        self._num_tokens = 0
        self._max_token_id = 0
        self._bos_offsets: list[Int64Array] = []

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def continue_from(self, finished: Sequence[ShardRecord], open_tokens: int) -> None:
        """Take up the work of a writer that stopped; call it before the first `write`.

        Args:
            finished: Its finished shards, which are there.
            open_tokens: Tokens of the next shard that are on the disk; whatever follows them is cut off.

        Raises:
            DataError: A shard is not there, or is shorter than it was.
        """
        for record in finished:
            _require_bytes(self._directory / record.name, record.num_bytes)
        self._records = [run_now(lambda record=record: record) for record in finished]  # type: ignore[misc]
        if not open_tokens:
            return
        path, temporary = self._path, temporary_path(self._path)
        # It may have been finished after its progress was last written down.
        if not temporary.exists() and path.exists():
            path.rename(temporary)
        wanted_bytes = self._begin_bytes + open_tokens * self._dtype.itemsize
        _require_bytes(temporary, wanted_bytes)
        with explain_write_errors(path):
            self._file = temporary.open("r+b")
            self._file.truncate(wanted_bytes)
            self._file.seek(self._begin_bytes)
            # By blocks: a shard may have gigabytes.
            while content := self._file.read(_BLOCK_BYTES):
                self._note(np.frombuffer(content, dtype=self._dtype))

    @property
    def open_tokens(self) -> int:
        """Tokens in the unfinished shard."""
        return self._num_tokens

    @property
    def records(self) -> list[Future[ShardRecord]]:
        """The shards that are full; each is done when its future is."""
        return list(self._records)

    def flush(self) -> Path | None:
        """Hand what was written to the system; the file of the unfinished shard, which is not synchronised yet."""
        if self._file is None:
            return None
        with explain_write_errors(self._path):
            self._file.flush()
        return temporary_path(self._path)

    def write(self, tokens: npt.NDArray[np.integer[Any]]) -> None:
        """Append tokens, shape (n,), of any integer type.

        Raises:
            DataError: An id does not fit the shard's type, or the disk is full.
        """
        narrow = self._narrowed(tokens)
        while len(narrow):
            space = self._shard_tokens - self._num_tokens
            self._append(narrow[:space])
            narrow = narrow[space:]
            if self._num_tokens == self._shard_tokens:
                self._finish_shard()

    def close(self) -> list[ShardRecord]:
        """Finish the last shard and return all records, in order; empty if nothing was written."""
        if self._file is not None:
            self._finish_shard()
        return [record.result() for record in self._records]

    def discard(self) -> None:
        """Remove the unfinished shard, if there is one; finished shards stay."""
        if self._file is not None:
            self.release()
            temporary_path(self._path).unlink(missing_ok=True)

    def release(self) -> None:
        """Close the unfinished shard and leave it where it is, for `continue_from`."""
        if self._file is not None:
            # Closing flushes once more, which fails again when the disk is full.
            with suppress(OSError):
                self._file.close()
            self._file = None

    @property
    def _path(self) -> Path:
        return self._directory / shard_name(self._split, len(self._records))

    @property
    def _begin_bytes(self) -> int:
        return len(self._format.header(0, self._dtype))

    def _write_index(self, path: Path, bos_offsets: Int64Array, num_tokens: int) -> None:
        """Write what says where the documents of the shard `path` begin."""
        if self._bos_id is not None:
            index = self._format.index(bos_offsets, num_tokens, self._dtype, ends_too=self.bos_is_eos)
            write_durably(self._format.index_path(path), index)

    def _narrowed(self, tokens: npt.NDArray[np.integer[Any]]) -> TokenArray:
        if tokens.dtype == self._dtype or not len(tokens):
            return tokens.astype(self._dtype, copy=False)
        smallest, largest = int(tokens.min()), int(tokens.max())
        limit = int(np.iinfo(self._dtype).max)
        if smallest < 0 or largest > limit:
            raise DataError(
                f"token id {smallest if smallest < 0 else largest:,} does not fit {self._dtype.name} (0 to {limit:,})",
                where=str(self._path),
                help="the tokenizer's vocab_size is smaller than the ids it gives",
            )
        return tokens.astype(self._dtype)

    def _append(self, tokens: TokenArray) -> None:
        with explain_write_errors(self._path):
            if self._file is None:
                self._file = temporary_path(self._path).open("wb")
                self._file.write(bytes(self._begin_bytes))
            self._file.write(np.ascontiguousarray(tokens).data)
        self._note(tokens)

    def _note(self, tokens: TokenArray) -> None:
        """Count tokens that stand in the file."""
        if self._bos_id is not None:
            self._bos_offsets.append(np.flatnonzero(tokens == self._bos_id) + self._num_tokens)
        self._max_token_id = max(self._max_token_id, int(tokens.max(initial=0)))
        self._num_tokens += len(tokens)

    def _finish_shard(self) -> None:
        if self._file is None:
            return
        file, path, num_tokens, largest = self._file, self._path, self._num_tokens, self._max_token_id
        cursor, bos_offsets = self.source_cursor, np.concatenate([np.empty(0, dtype=np.int64), *self._bos_offsets])
        num_bytes = self._begin_bytes + num_tokens * self._dtype.itemsize

        def finish() -> ShardRecord:
            sha256 = _complete(file, path, self._format.header(num_tokens, self._dtype))
            # The shard gets its name last, so a reader that sees it finds its index too.
            self._write_index(path, bos_offsets, num_tokens)
            with explain_write_errors(path):
                replace_durably(path)
            return ShardRecord(path.name, num_tokens, num_bytes, sha256, largest, cursor)

        self._file, self._num_tokens, self._max_token_id, self._bos_offsets = None, 0, 0, []
        try:
            self._records.append(self.run(finish))
        except BaseException:
            # `discard` finds the file by its number, which only a record would have raised.
            self._file = file
            raise


def _require_bytes(path: Path, num_bytes: int) -> None:
    found_bytes = path.stat().st_size if path.exists() else 0
    if found_bytes < num_bytes:
        raise DataError(
            f"the file has {found_bytes:,} bytes, but {num_bytes:,} were written",
            where=str(path),
            help="--overwrite makes the data again",
        )


def _complete(file: BinaryIO, path: Path, header: bytes) -> str:
    """Put the header in place, flush all of it to the disk and close it; the SHA-256 of the file."""
    with explain_write_errors(path):
        # The header is written last: only now is the number of tokens known.
        file.seek(0)
        file.write(header)
        file.flush()
        os.fsync(file.fileno())
        file.close()
        # Read back what was written rather than hash what was meant to be written.
        with temporary_path(path).open("rb") as written:
            return hashlib.file_digest(written, "sha256").hexdigest()
