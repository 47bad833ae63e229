"""From the ids of texts to documents as they stand in a shard: BOS, EOS, length limit, token type.

A pure function of each document alone, so it does not matter which documents share a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from automodel_cli.engine.prep.tokenizer import Encoded
from automodel_cli.engine.shards.tokens import TokenArray
from automodel_cli.errors import DataError

Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Documents:
    """Some documents, ready to be written.

    Attributes:
        tokens: Shape (n,), of the shard's type, boundary tokens included.
        offsets: Shape (documents + 1,): document `i` is `tokens[offsets[i]:offsets[i + 1]]`.
        text_bytes: Shape (documents,): bytes of UTF-8 that each came from; a piece of a document
            that was split, other than its first, counts none.
        over_length: Shape (documents,): whether it was cut, or is the first piece of one that was split.
    """

    tokens: TokenArray
    offsets: Offsets
    text_bytes: Offsets
    over_length: npt.NDArray[np.bool_]


def join(parts: Sequence[Documents]) -> Documents:
    """Several batches as one; at least one is needed."""
    if len(parts) == 1:
        return parts[0]
    begins = np.cumsum([0, *(len(part.tokens) for part in parts[:-1])])
    return Documents(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate(
            [begin + part.offsets[:-1] for begin, part in zip(begins, parts, strict=True)]
            + [begins[-1:] + len(parts[-1].tokens)]
        ),
        np.concatenate([part.text_bytes for part in parts]),
        np.concatenate([part.over_length for part in parts]),
    )


@dataclass(frozen=True)
class Framing:
    """How documents are framed.

    Attributes:
        dtype: uint16 or uint32, little endian.
        vocab_size: Every id must be below it.
        bos_id: Put before each document; `None` puts nothing.
        eos_id: Put behind each document; `None` puts nothing.
        max_length: Tokens of the longest document, BOS and EOS included; `None` for no limit.
        split: A longer document becomes several, instead of being cut.
    """

    dtype: np.dtype[Any]
    vocab_size: int
    bos_id: int | None
    eos_id: int | None = None
    max_length: int | None = None
    split: bool = False

    @property
    def num_boundary_tokens(self) -> int:
        """BOS and EOS tokens for each document."""
        return (self.bos_id is not None) + (self.eos_id is not None)

    def frame(self, encoded: Encoded, text_bytes: Offsets) -> Documents:
        """Frame a batch.

        Args:
            encoded: The ids of the texts.
            text_bytes: Bytes of each text, shape (texts,).

        Raises:
            DataError: An id is outside the vocabulary; cast to the shard's type, it would become another token.
                Or a text gave the BOS token, as from tokenizers that read special tokens in text.
        """
        num_texts = len(text_bytes)
        largest = int(encoded.ids.max(initial=0))
        if largest >= self.vocab_size:
            raise DataError(
                f"the tokenizer gave the id {largest:,}, but its vocabulary has {self.vocab_size:,} entries",
                help="its tokenizer.json contradicts itself",
            )
        if self.bos_id is not None and bool((encoded.ids == self.bos_id).any()):
            raise DataError(
                f"a text contains the BOS token {self.bos_id:,} itself, which would look like a document's beginning",
                help="--bos-token chooses another entry of the vocabulary, --no-bos does without",
            )
        ids, offsets = encoded.ids.astype(self.dtype), encoded.offsets
        over_length = np.zeros(num_texts, dtype=np.bool_)
        if self.max_length is not None:
            room = self.max_length - self.num_boundary_tokens
            over_length = np.diff(offsets) > room
            if over_length.any():
                shorten = _split if self.split else _cut
                ids, offsets, text_bytes, over_length = shorten(ids, offsets, text_bytes, over_length, room)
        ids, offsets = self._with_boundaries(ids, offsets)
        return Documents(ids, offsets, text_bytes, over_length)

    def _with_boundaries(self, ids: TokenArray, offsets: Offsets) -> tuple[TokenArray, Offsets]:
        if not self.num_boundary_tokens:
            return ids, offsets
        begins, ends = offsets[:-1], offsets[1:]
        # Values that are inserted at one place keep the order in which they are given here, so
        # an EOS comes before the BOS of the next document, also around a text without tokens.
        if self.eos_id is None:
            places, values = begins, np.full(len(begins), self.bos_id, dtype=self.dtype)
        elif self.bos_id is None:
            places, values = ends, np.full(len(ends), self.eos_id, dtype=self.dtype)
        else:
            places = np.stack((begins, ends), axis=1).ravel()
            values = np.tile(np.array([self.bos_id, self.eos_id], dtype=self.dtype), len(begins))
        shift = np.arange(len(offsets), dtype=np.int64) * self.num_boundary_tokens
        return np.insert(ids, places, values), offsets + shift


_Shortened = tuple[TokenArray, Offsets, Offsets, npt.NDArray[np.bool_]]


def _cut(
    ids: TokenArray, offsets: Offsets, text_bytes: Offsets, over_length: npt.NDArray[np.bool_], room: int
) -> _Shortened:
    lengths = np.diff(offsets)
    kept = np.minimum(lengths, room)
    position = np.arange(len(ids)) - np.repeat(offsets[:-1], lengths)
    return ids[position < room], np.concatenate(([0], np.cumsum(kept))), text_bytes, over_length


def _split(
    ids: TokenArray, offsets: Offsets, text_bytes: Offsets, over_length: npt.NDArray[np.bool_], room: int
) -> _Shortened:
    lengths = np.diff(offsets)
    # A text without tokens stays one document.
    num_pieces = np.maximum(1, -(-lengths // room))
    first = np.concatenate(([0], np.cumsum(num_pieces)))[:-1]
    within = np.arange(int(num_pieces.sum())) - np.repeat(first, num_pieces)
    begins = np.repeat(offsets[:-1], num_pieces) + within * room
    is_first = within == 0
    return (
        ids,
        np.concatenate((begins, offsets[-1:])),
        np.where(is_first, np.repeat(text_bytes, num_pieces), 0),
        is_first & np.repeat(over_length, num_pieces),
    )
