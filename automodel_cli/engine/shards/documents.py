"""The documents of a split, whatever the format of its shards: where each begins and what it holds.

A document begins at a BOS token; in Megatron's format the index says where. Shards roll over at a number
of tokens, so a document may begin in one shard and end in the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from automodel_cli.engine.shards.bos_index import document_begins, load_bos_offsets
from automodel_cli.engine.shards.directory import bos_id_by_index
from automodel_cli.engine.shards.format import ShardInfo, TokenArray, open_tokens, read_shard_header
from automodel_cli.engine.shards.megatron import is_megatron, read_megatron
from automodel_cli.errors import DataError, UsageError

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        number: Its place in the split, from 0.
        shard: Where it begins.
        offset: Token offset there.
        tokens: Its tokens, BOS included.
    """

    number: int
    shard: Path
    offset: int
    tokens: TokenArray


def read_shard(path: Path) -> ShardInfo:
    """The header of a shard, or what the Megatron index beside it says.

    Raises:
        DataError: See `read_shard_header` and `read_megatron`.
    """
    return read_megatron(path).info if is_megatron(path) else read_shard_header(path)


class SplitDocuments:
    """The documents of one split.

    Args:
        shards: In reading order.
        bos_id: The id that begins a document; `None` takes what the indices point at.
        ends_too: The same id also ends each document.

    Attributes:
        shards: What the headers say.
        starts: Token offset of each document from the beginning of the split, and the number of tokens at
            the end; only that number where nothing says where documents begin.

    Raises:
        DataError: A shard cannot be read or does not fit its header.
    """

    def __init__(self, shards: Sequence[Path], bos_id: int | None, *, ends_too: bool = False) -> None:
        self.shards = [read_shard(path) for path in shards]
        self._begins = np.cumsum([0, *(info.num_tokens for info in self.shards)], dtype=np.int64)
        found = [self._starts_in(info, bos_id) + begin for info, begin in zip(self.shards, self._begins, strict=False)]
        begins = np.concatenate([*found, self._begins[:0]])
        if ends_too:
            begins = self._without_ends(begins, bos_id)
        self.starts: Int64Array = np.unique(np.append(begins, self._begins[-1]))

    @property
    def num_documents(self) -> int:
        """Documents that begin in the split."""
        return len(self.starts) - 1

    @property
    def lengths(self) -> Int64Array:
        """Tokens of each document, shape (D,)."""
        return np.diff(self.starts)

    def document(self, number: int) -> Document:
        """The document at a place.

        Raises:
            UsageError: There is none.
        """
        if not 0 <= number < self.num_documents:
            raise UsageError(f"there is no document {number:,}: the split has {self.num_documents:,}, counted from 0")
        return self._read(number, int(self.starts[number]), int(self.starts[number + 1]))

    def document_at(self, offset: int) -> Document:
        """The document that holds the token at `offset` of the split.

        Raises:
            UsageError: The split is shorter, or no document begins before that token.
        """
        num_tokens = int(self._begins[-1])
        if not 0 <= offset < num_tokens:
            raise UsageError(f"there is no token {offset:,}: the split has {num_tokens:,}, counted from 0")
        number = int(np.searchsorted(self.starts, offset, side="right")) - 1
        if number < 0:
            raise UsageError(
                f"nothing says where the document of token {offset:,} begins",
                help="give --bos-token, for example 50256 for the GPT-2 vocabulary",
            )
        return self.document(number)

    def _read(self, number: int, begin: int, end: int) -> Document:
        first = int(np.searchsorted(self._begins, begin, side="right")) - 1
        parts = []
        for shard in range(first, len(self.shards)):
            start = int(self._begins[shard])
            if start >= end:
                break
            parts.append(open_tokens(self.shards[shard])[max(begin - start, 0) : end - start])
        return Document(number, self.shards[first].path, begin - int(self._begins[first]), np.concatenate(parts))

    def _without_ends(self, begins: Int64Array, bos_id: int | None) -> Int64Array:
        """The offsets at which documents begin, of those at which the one token that does both stands."""
        if all(info.magic is not None for info in self.shards):
            return document_begins(begins, ends_too=True)
        # Megatron's indices list beginnings, but for the first place of a file, which may be an end.
        ends = [
            begin
            for begin, before in zip(self._begins[1:-1], self.shards, strict=False)
            if before.num_tokens and int(open_tokens(before)[-1]) != bos_id
        ]
        return np.setdiff1d(begins, ends)

    @staticmethod
    def _starts_in(info: ShardInfo, bos_id: int | None) -> Int64Array:
        if info.magic is None:
            starts = read_megatron(info.path).document_starts[:-1]
            # Documents without tokens begin nowhere; where BOS is known, the end of a document that began
            # in the shard before is no document, though the index has to list it as one.
            starts = starts[starts < info.num_tokens]
            return starts if bos_id is None else starts[open_tokens(info)[starts] == bos_id]
        known = bos_id_by_index(info) if bos_id is None else bos_id
        if known is None:
            return np.zeros(0, dtype=np.int64)
        return load_bos_offsets(info, open_tokens(info), known)


def require_documents(documents: SplitDocuments, where: Path) -> None:
    """Refuse a split of which nothing says where its documents begin.

    Raises:
        DataError: There is no index, and no BOS token is known or occurs.
    """
    if not documents.num_documents:
        raise DataError(
            "nothing says where documents begin: there is no manifest, no index, and no BOS token was given",
            where=str(where),
            help="give --bos-token, for example 50256 for the GPT-2 vocabulary",
        )
