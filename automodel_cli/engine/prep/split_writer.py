"""Writes the documents of one split and counts what goes by."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from automodel_cli.engine.prep.tokenizer import TokenIds
from automodel_cli.engine.shards.entropy import unigram_entropy_nats
from automodel_cli.engine.shards.format import token_dtype
from automodel_cli.engine.shards.manifest import SplitRecord
from automodel_cli.engine.shards.writer import ShardWriter


class SplitWriter:
    """Collects documents, writes them with `flush`, and closes with the split's record.

    Args:
        directory: Exists already.
        split: `train` or `val`.
        vocab_size: Chooses the type of the tokens.
        bos_id: As for `ShardWriter`; the documents hold it already.
        shard_tokens: As for `ShardWriter`.
    """

    def __init__(self, directory: Path, split: str, vocab_size: int, bos_id: int | None, shard_tokens: int) -> None:
        self._shards = ShardWriter(directory, split, token_dtype(vocab_size), shard_tokens, bos_id)
        self._pending: list[TokenIds] = []
        self._counts = np.zeros(vocab_size, dtype=np.int64)
        self._num_documents = 0
        self._text_bytes = 0
        self._longest_document_tokens = 0
        self.num_tokens = 0

    def add(self, document: TokenIds, text_bytes: int) -> None:
        """Append one document, BOS included, shape (n,)."""
        self._pending.append(document)
        self._num_documents += 1
        self._text_bytes += text_bytes
        self._longest_document_tokens = max(self._longest_document_tokens, len(document))
        self.num_tokens += len(document)

    def flush(self) -> None:
        """Write what was added; many small writes become one."""
        if self._pending:
            tokens = np.concatenate(self._pending)
            self._pending = []
            self._shards.write(tokens)
            self._counts += np.bincount(tokens, minlength=len(self._counts))

    def discard(self) -> None:
        """Remove the unfinished shard."""
        self._shards.discard()

    def close(self) -> SplitRecord:
        """Finish the last shard."""
        self.flush()
        return SplitRecord(
            num_documents=self._num_documents,
            num_tokens=self.num_tokens,
            text_bytes=self._text_bytes,
            max_token_id=int(np.flatnonzero(self._counts).max(initial=0)),
            longest_document_tokens=self._longest_document_tokens,
            unigram_entropy_nats=unigram_entropy_nats(self._counts),
            shards=tuple(self._shards.close()),
        )
