"""The tokenizer `bytes`: the 256 byte values of UTF-8, and BOS = 256. Needs no vocabulary."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from automodel_cli.engine.prep.token_ids import check_ids
from automodel_cli.engine.prep.tokenizer import TokenIds, replace_surrogates


class ByteTokenizer:
    """One token per byte of UTF-8.

    >>> tokenizer = ByteTokenizer()
    >>> tokenizer.encode_batch(["Ab"])[0].tolist(), tokenizer.decode([256, 65, 98])
    ([65, 98], 'Ab')
    """

    name = "bytes"
    vocab_size = 257
    bos_id: int | None = 256
    sha256 = hashlib.sha256(b"amcli tokenizer bytes: id = byte of UTF-8, BOS = 256").hexdigest()

    def encode_batch(self, texts: Sequence[str]) -> list[TokenIds]:
        """The bytes of each text, as uint32 arrays."""
        return [
            np.frombuffer(replace_surrogates(text).encode("utf-8"), dtype=np.uint8).astype(np.uint32) for text in texts
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without BOS; bytes that are no UTF-8 become U+FFFD.

        Raises:
            DataError: An id is not in 0 to 256.
        """
        checked = check_ids(ids, self.name, self.vocab_size)
        return bytes(token for token in checked if token < 256).decode("utf-8", errors="replace")
