"""Megatron's indexed dataset, version 1: `NAME.bin` holds tokens and nothing else, `NAME.idx` the rest.

    9 bytes    "MMIDIDX" and two zeros
    uint64     version: 1
    uint8      type of the tokens: 1 uint8, 2 int8, 3 int16, 4 int32, 5 int64, 8 uint16 (6 and 7 are floats)
    uint64     number of sequences S
    uint64     number of document indices D + 1
    int32[S]   tokens of each sequence
    int64[S]   byte offset of each sequence in the .bin
    int64[D+1] sequence at which each document begins, and S at the end

Everything is little endian. Only files whose sequences follow each other without gaps are read, as all
known writers lay them out; the lengths then say everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from automodel_cli.engine.bounded import UnsoundError, read_bytes
from automodel_cli.engine.config.shard_header import (
    MEGATRON_HEADER,
    MEGATRON_MAGIC,
    MEGATRON_TYPES,
    MEGATRON_VERSION,
    megatron_header,
)
from automodel_cli.engine.shards.manifest import DataManifest
from automodel_cli.engine.shards.shard_format import ShardFormat, document_begins
from automodel_cli.engine.shards.tokens import Int64Array, ShardInfo, Tokens
from automodel_cli.errors import ConfigError, DataError


@dataclass(frozen=True)
class MegatronIndex:
    """What an index says, after it was found to match its tokens.

    Attributes:
        info: The tokens.
        document_starts: Token offset of each document, and the number of tokens at the end: int64, (D + 1,).
    """

    info: ShardInfo
    document_starts: Int64Array

    @property
    def num_documents(self) -> int:
        """Documents in the file."""
        return len(self.document_starts) - 1


def index_path(bin_path: Path) -> Path:
    """The index of a file of tokens.

    >>> index_path(Path("data/web_text_document.bin")).name
    'web_text_document.idx'
    """
    return bin_path.with_suffix(".idx")


def read_megatron(bin_path: Path) -> MegatronIndex:
    """Read an index and check it against itself and the size of the file of tokens.

    Args:
        bin_path: The `.bin`; the `.idx` lies beside it.

    Raises:
        DataError: One of the files cannot be read, the index is of another kind or version, its tokens
            are no whole numbers, its sequences have gaps, or the two files do not belong together.
    """
    path = index_path(bin_path)
    try:
        bin_bytes = bin_path.stat().st_size
        # Sequences without a token are allowed, and a file that lists more of them than tokens is none that is written.
        raw = read_bytes(path, MEGATRON_HEADER.size + 21 * (bin_bytes + 2))
    except UnsoundError as error:
        raise DataError(f"the index cannot be read: {error}", where=str(path)) from error
    except OSError as error:
        missing = str(error.filename or path)
        raise DataError(f"the Megatron dataset cannot be read: {error.strerror}", where=missing) from error
    token_type, num_sequences, num_indices = megatron_header(path, raw)
    dtype = np.dtype(token_type)
    lengths_at = MEGATRON_HEADER.size
    pointers_at = lengths_at + 4 * num_sequences
    documents_at = pointers_at + 8 * num_sequences
    end = documents_at + 8 * num_indices
    # Multimodal writers append one byte per sequence.
    if len(raw) not in (end, end + num_sequences):
        raise DataError(
            f"the index has {len(raw):,} bytes, but {num_sequences:,} sequences and {num_indices:,} document "
            f"indices need {end:,}",
            where=str(path),
            help="the file was cut short or is still being written; copy or prepare it again",
        )
    lengths = np.frombuffer(raw, "<i4", num_sequences, lengths_at).astype(np.int64)
    pointers = np.frombuffer(raw, "<i8", num_sequences, pointers_at)
    documents = np.frombuffer(raw, "<i8", num_indices, documents_at)
    starts = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(lengths)))
    _check(path, lengths, pointers, documents, starts * dtype.itemsize)
    num_tokens = int(starts[-1])
    if bin_bytes != num_tokens * dtype.itemsize:
        raise DataError(
            f"the file has {bin_bytes:,} bytes, but {path.name} promises {num_tokens:,} tokens of {dtype.itemsize} "
            f"bytes = {num_tokens * dtype.itemsize:,}",
            where=str(bin_path),
            help="the two files are not of one run, or one was cut short; copy or prepare them again",
        )
    return MegatronIndex(ShardInfo(bin_path, num_tokens, dtype, MegatronFormat.name, begin_bytes=0), starts[documents])


def _begins_to_list(bos_offsets: Int64Array, *, ends_too: bool) -> Int64Array:
    """Where the documents of a file begin, of which the first may be the end of one that began in another file."""
    begins = document_begins(bos_offsets, ends_too=ends_too)
    return np.unique(np.concatenate((np.zeros(1, dtype=np.int64), begins)))


def build_index(lengths: Int64Array, dtype: np.dtype[Any]) -> bytes:
    """The index of documents of these lengths, one sequence each, that stand one behind the other.

    Args:
        lengths: Tokens of each document, shape (D,), each below 2**31.
        dtype: Type of the tokens, uint16 or int32.
    """
    code = next(code for code, known in MEGATRON_TYPES.items() if known == dtype.str)
    pointers = (np.cumsum(lengths) - lengths) * dtype.itemsize
    parts = (
        MEGATRON_HEADER.pack(MEGATRON_MAGIC, MEGATRON_VERSION, code, len(lengths), len(lengths) + 1),
        lengths.astype("<i4").tobytes(),
        pointers.astype("<i8").tobytes(),
        np.arange(len(lengths) + 1, dtype="<i8").tobytes(),
    )
    return b"".join(parts)


def _check(
    path: Path,
    lengths: Int64Array,
    pointers: Int64Array,
    documents: Int64Array,
    expected: Int64Array,
) -> None:
    """That lengths, pointers and documents are of one piece; `expected` are the pointers without gaps."""
    if lengths.min(initial=0) < 0:
        raise DataError("the index has a sequence of negative length", where=str(path))
    if not np.array_equal(pointers, expected[:-1]):
        place = int(np.flatnonzero(pointers != expected[:-1])[0])
        raise DataError(
            f"sequence {place:,} begins at byte {int(pointers[place]):,}, but the sequences before it end at "
            f"{int(expected[place]):,}; only sequences without gaps are read",
            where=str(path),
        )
    is_ascending = len(documents) > 0 and documents[0] == 0 and documents[-1] == len(lengths)
    if not is_ascending or bool((np.diff(documents) < 0).any()):
        raise DataError(
            f"the document indices must ascend from 0 to the {len(lengths):,} sequences, but they do not",
            where=str(path),
        )


class MegatronFormat(ShardFormat):
    """One sequence for each document; a document that a file's end cuts is listed in both files."""

    name = "megatron"
    title = "megatron"
    dataset = "MegatronPretraining"
    lists_documents = True

    def claims(self, path: Path) -> bool:
        """Whether an index lies beside the file."""
        return index_path(path).is_file()

    def read(self, path: Path) -> ShardInfo:
        """As `read_megatron`, without the documents."""
        return read_megatron(path).info

    def starts(self, info: ShardInfo, bos_id: int | None) -> Int64Array:
        """Where the index says that documents begin; where BOS is known, only those that begin with it."""
        starts = read_megatron(info.path).document_starts[:-1]
        # Documents without tokens begin nowhere; where BOS is known, the end of a document that began
        # in the file before is no document, though the index has to list it as one.
        starts = starts[starts < info.num_tokens]
        return starts if bos_id is None else starts[Tokens(info)[starts] == bos_id]

    def known_bos(self, info: ShardInfo) -> int | None:
        """None: the index lists documents, whatever they begin with."""
        return None

    def index_problems(
        self, info: ShardInfo, bos_offsets: Int64Array, bos_id: int | None, manifest: DataManifest | None
    ) -> Iterator[str]:
        """Files of other tools may begin documents with anything, so only what a manifest describes is compared."""
        starts = read_megatron(info.path).document_starts[:-1]
        if manifest is None or bos_id is None:
            return
        if not np.array_equal(starts, _begins_to_list(bos_offsets, ends_too=manifest.tokenizer.bos_is_eos)):
            yield "the index does not begin its documents at the BOS tokens"

    def index_path(self, path: Path) -> Path:
        """`NAME.idx`."""
        return index_path(path)

    def stored_dtype(self, dtype: np.dtype[Any], bos_id: int | None) -> np.dtype[Any]:
        """uint16, or int32 instead of uint32: the type that Megatron has for large vocabularies."""
        if bos_id is None:
            raise ConfigError(
                "the format megatron lists where documents begin, so it needs a BOS token, but there is none",
                help="give one, or choose another --format",
            )
        return np.dtype("<i4") if dtype.itemsize == 4 else dtype

    def header(self, num_tokens: int, dtype: np.dtype[Any]) -> bytes:
        """Nothing."""
        return b""

    def index(self, bos_offsets: Int64Array, num_tokens: int, dtype: np.dtype[Any], *, ends_too: bool) -> bytes:
        """Documents as the BOS tokens begin them, and one at the beginning of the file in any case."""
        return build_index(np.diff(_begins_to_list(bos_offsets, ends_too=ends_too), append=num_tokens), dtype)
