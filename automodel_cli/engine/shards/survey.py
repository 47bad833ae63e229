"""What a directory of shards holds: its manifest, the lengths of documents, the most frequent tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from automodel_cli.engine.shards.directory import ShardDirectory, SplitDocuments
from automodel_cli.engine.shards.formats import format_of
from automodel_cli.engine.shards.scan import count_ids, sum_counts
from automodel_cli.engine.shards.tokens import Int64Array, ShardInfo, Tokens

TOP_TOKENS = 20
# Tokens are counted in blocks spread over the whole split: 64 Mi tokens take about a second.
_MAX_COUNTED_TOKENS = 1 << 26
_BLOCK_TOKENS = 1 << 20


@dataclass(frozen=True)
class LengthBin:
    """Documents of `from_tokens` to `to_tokens` tokens, both included."""

    from_tokens: int
    to_tokens: int
    num_documents: int


@dataclass(frozen=True)
class TopToken:
    """A token, how often it occurs, and its share of all that were counted."""

    token_id: int
    count: int
    share: float


@dataclass(frozen=True)
class SplitSurvey:
    """One split.

    Attributes:
        num_shards: Its shards.
        num_tokens: Tokens in all of them.
        num_documents: Documents, or `None` where nothing says where they begin.
        token_bytes: Bytes per token in each shard, without repetition.
        formats: `current`, `legacy`, `megatron` and so on, without repetition.
        median_document_tokens: Median length of the documents.
        lengths: Histogram of the lengths, in bins of powers of two.
        counted_tokens: How many tokens were counted for `top_tokens`; all, or blocks spread evenly.
        top_tokens: The most frequent, descending.
    """

    num_shards: int
    num_tokens: int
    num_documents: int | None
    token_bytes: tuple[int, ...]
    formats: tuple[str, ...]
    median_document_tokens: float | None
    lengths: tuple[LengthBin, ...]
    counted_tokens: int
    top_tokens: tuple[TopToken, ...]


@dataclass(frozen=True)
class Survey:
    """A directory: its manifest as plain values, if there is one, and its splits."""

    directory: str
    manifest: dict[str, Any] | None
    splits: dict[str, SplitSurvey]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def survey(directory: ShardDirectory, bos_id: int | None) -> Survey:
    """Look at every split.

    Args:
        directory: What to look at.
        bos_id: The id that begins a document; `None` takes the manifest's, else what the indices point at.

    Raises:
        DataError: A shard cannot be read or does not fit its header.
    """
    if bos_id is None and directory.manifest is not None:
        bos_id = directory.manifest.tokenizer.bos_id
    ends_too = directory.manifest is not None and directory.manifest.tokenizer.bos_is_eos
    splits = {
        name: _split(SplitDocuments(files, bos_id, ends_too=ends_too)) for name, files in directory.splits.items()
    }
    manifest = None if directory.manifest is None else directory.manifest.to_dict()
    return Survey(str(directory.path), manifest, splits)


def _split(documents: SplitDocuments) -> SplitSurvey:
    lengths = documents.lengths
    counts, counted = _count_tokens(documents.shards)
    order = np.argsort(-counts, kind="stable")[:TOP_TOKENS]
    top = tuple(
        TopToken(int(token), int(counts[token]), int(counts[token]) / counted) for token in order[: counts.size]
    )
    return SplitSurvey(
        num_shards=len(documents.shards),
        num_tokens=sum(info.num_tokens for info in documents.shards),
        num_documents=len(lengths) or None,
        token_bytes=tuple(sorted({info.dtype.itemsize for info in documents.shards})),
        formats=tuple(sorted({format_of(info).title for info in documents.shards})),
        median_document_tokens=float(np.median(lengths)) if len(lengths) else None,
        lengths=length_histogram(lengths),
        counted_tokens=counted,
        top_tokens=tuple(token for token in top if token.count),
    )


def length_histogram(lengths: Int64Array) -> tuple[LengthBin, ...]:
    """Lengths in bins 1, 2 to 3, 4 to 7, 8 to 15 and so on, from the first that is not empty to the last.

    >>> [(found.from_tokens, found.to_tokens, found.num_documents) for found in length_histogram(np.array([5, 3, 6]))]
    [(2, 3, 1), (4, 7, 2)]
    """
    if not len(lengths):
        return ()
    # frexp gives the number of bits exactly, where a logarithm would round 2**k - 1 up.
    bits = np.frexp(lengths.astype(np.float64))[1] - 1
    counts = np.bincount(bits)
    first = int(np.flatnonzero(counts)[0])
    return tuple(LengthBin(1 << bit, (2 << bit) - 1, int(counts[bit])) for bit in range(first, len(counts)))


def _count_tokens(shards: Sequence[ShardInfo]) -> tuple[Int64Array, int]:
    """Occurrences of each id below 2,097,152 in blocks spread over the shards, and how many tokens they hold."""
    total = sum(info.num_tokens for info in shards)
    stride = _BLOCK_TOKENS * max(1, -(-total // _MAX_COUNTED_TOKENS))
    counts = np.zeros(0, dtype=np.int64)
    counted = 0
    for info in shards:
        tokens = Tokens(info)
        for begin in range(0, info.num_tokens, stride):
            block = tokens[begin : begin + _BLOCK_TOKENS]
            counts = sum_counts(counts, count_ids(block))
            counted += len(block)
    return counts, counted
