"""The tokenizer `bytes`: the 256 byte values of UTF-8, and BOS = 256. Needs no vocabulary."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from automodel_cli.engine.prep.arrow_text import utf8_of
from automodel_cli.engine.prep.token_ids import check_ids
from automodel_cli.engine.prep.tokenizer import Encoded, TokenIds, replace_surrogates

if TYPE_CHECKING:
    import pyarrow as pa


class ByteTokenizer:
    """One token per byte of UTF-8.

    >>> tokenizer = ByteTokenizer()
    >>> tokenizer.encode("Ab").tolist(), tokenizer.decode([256, 65, 98])
    ([65, 98], 'Ab')
    """

    name = "bytes"
    engine = "bytes"
    vocab_size = 257
    bos_id: int | None = 256
    eos_id: int | None = 256
    unk_id: int | None = None
    sha256 = hashlib.sha256(b"amcli tokenizer bytes: id = byte of UTF-8, BOS = 256").hexdigest()
    json: str | None = None

    def encode_batch(self, texts: pa.Array) -> Encoded:
        """The bytes of the texts: the buffer that Arrow holds already, widened."""
        content, offsets = utf8_of(texts)
        return Encoded(content.astype(np.uint32), offsets)

    def encode(self, text: str) -> TokenIds:
        """The bytes of one text."""
        return np.frombuffer(replace_surrogates(text).encode("utf-8"), dtype=np.uint8).astype(np.uint32)

    def token_id(self, token: str) -> int | None:
        """The id of a one-byte character."""
        content = token.encode("utf-8")
        return content[0] if len(content) == 1 else None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without BOS; bytes that are no UTF-8 become U+FFFD.

        Raises:
            DataError: An id is not in 0 to 256.
        """
        checked = check_ids(ids, self.name, self.vocab_size)
        return bytes(token for token in checked if token < 256).decode("utf-8", errors="replace")
