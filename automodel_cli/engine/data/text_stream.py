"""Samples from a stream of texts, tokenized on the way: a small start without preparation.

Documents are joined, each after a BOS, and cut into samples of one length; neighbours share a token,
so that every transition is trained on once, as over shards. Preparing shards is faster for every run
after the first, and shuffles; a stream is read in its own order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from automodel_cli.engine.data.stream_loader import StreamPosition
from automodel_cli.errors import DataError

if TYPE_CHECKING:
    from automodel_cli.engine.protocols import Int64Array


class TokenizedTextStream:
    """Tokenizes the rows of a dataset while they are read.

    Args:
        dataset: Rows with a text, iterable more than once: `{_target_: datasets.load_dataset, path: ..., split: train,
            streaming: true}`, or any iterable of mappings.
        tokenizer: A directory or hub name for transformers.AutoTokenizer, or a tokenizer that was built.
        seq_len: Inputs per sample.
        text_column: The column that holds the text.
        bos_token: The id before each document; by default the tokenizer's BOS, or else its EOS.

    Raises:
        DataError: The tokenizer names no token that begins a document.
    """

    def __init__(
        self,
        dataset: Iterable[Mapping[str, Any]],
        tokenizer: Any,
        seq_len: int,
        text_column: str = "text",
        bos_token: int | None = None,
    ) -> None:
        if isinstance(tokenizer, str):
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
        self._rows = StreamPosition(dataset)
        self._tokenizer = tokenizer
        self.seq_len = seq_len
        self._text_column = text_column
        own = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        begin = own if bos_token is None else bos_token
        if begin is None:
            raise DataError(
                "the tokenizer has neither a BOS nor an EOS token to put before each document",
                help="set bos_token to the id that begins a document",
            )
        self._bos = int(begin)
        self.max_token_id = max(len(tokenizer) - 1, self._bos)
        self._begin: list[int] = []  # tokens that the next pass begins with, after a state was loaded
        self._left: list[int] = []  # tokens that this pass has read and not given

    def __iter__(self) -> Iterator[dict[str, Int64Array]]:
        tokens, self._begin = self._begin, []
        rows = iter(self._rows)
        while True:
            # Before the next row: after a loaded state there may be samples left of rows that were read.
            while len(tokens) > self.seq_len:
                sample, tokens = tokens[: self.seq_len + 1], tokens[self.seq_len :]
                self._left = tokens
                ids = np.asarray(sample, dtype=np.int64)
                yield {"input_ids": ids[:-1], "labels": ids[1:]}
            row = next(rows, None)
            if row is None:
                return
            tokens = [*tokens, self._bos, *self._ids_of(row)]

    def set_epoch(self, epoch: int) -> None:
        """Passes the number of the pass on to the dataset, if it has `set_epoch`."""
        self._rows.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The place in the dataset, and the tokens that were read and not given yet."""
        return {"rows": self._rows.state_dict(), "left": list(self._left)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on there with the next pass that begins."""
        self._rows.load_state_dict(state["rows"])
        self._begin = list(state["left"])

    def _ids_of(self, row: Mapping[str, Any]) -> list[int]:
        if self._text_column not in row:
            raise DataError(
                f"a row has the columns {', '.join(map(str, row))}, but no `{self._text_column}`",
                help="set text_column to the one that holds the text",
            )
        ids = self._tokenizer(row[self._text_column], add_special_tokens=False)["input_ids"]
        return [int(token) for token in ids]
