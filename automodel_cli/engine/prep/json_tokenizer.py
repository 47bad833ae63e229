"""A tokenizer that a `tokenizer.json` describes, run by Hugging Face `tokenizers`.

This is the reference: whatever is faster must give the same ids (`fast_engine.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from automodel_cli.engine.prep.token_ids import check_ids
from automodel_cli.engine.prep.tokenizer import Encoded, TokenIds, replace_surrogates
from automodel_cli.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


class JsonTokenizer:
    """Exact ids of a `tokenizer.json`; special tokens in a text are encoded as text.

    Args:
        name: What the user calls it.
        json: The content of `tokenizer.json`.
        bos_token: The entry that begins a document, if there is one.
        eos_token: The entry that ends a text, if there is one.
        sha256: Hash that stands for the content; `None` hashes `json`.

    Raises:
        DataError: `tokenizers` cannot read the content.
    """

    def __init__(
        self, name: str, json: str, bos_token: str | None, eos_token: str | None, sha256: str | None = None
    ) -> None:
        from tokenizers import __version__

        self.name = name
        self.engine = f"tokenizers {__version__}"
        self.json: str | None = json
        self._content = json
        self.sha256 = sha256 or hashlib.sha256(json.encode("utf-8", "surrogatepass")).hexdigest()
        self.vocab_size: int = 1 + max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1)
        self.unk_id = self._find_unk()
        self.bos_id = None if bos_token is None else self.token_id(bos_token)
        self.eos_id = None if eos_token is None else self.token_id(eos_token)

    def _find_unk(self) -> int | None:
        from tokenizers import models

        model = self._backend.model
        if isinstance(model, models.Unigram):
            # It shows the number of the entry only in its description.
            found = json.loads(self._content)["model"].get("unk_id")
            return found if isinstance(found, int) and 0 <= found < self.vocab_size else None
        return None if model.unk_token is None else self.token_id(model.unk_token)

    @cached_property
    def _backend(self) -> Any:
        from tokenizers import Tokenizer

        try:
            backend = Tokenizer.from_str(self._content)
        # The library raises bare Exception for everything that is wrong with a file.
        except Exception as error:
            raise DataError(f"the tokenizer {self.name!r} cannot be read: {error}") from error
        # A file may ask for padding and truncation, which would change what a document is.
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True
        return backend

    def encode_batch(self, texts: pa.Array) -> Encoded:
        """The ids of the texts, in as many threads as `TOKENIZERS_PARALLELISM` allows."""
        encoded = self._backend.encode_batch_fast(texts.to_pylist(), add_special_tokens=False)
        offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(encoding) for encoding in encoded], out=offsets[1:])
        ids = np.empty(offsets[-1], dtype=np.uint32)
        for begin, encoding in zip(offsets[:-1].tolist(), encoded, strict=True):
            ids[begin : begin + len(encoding)] = encoding.ids
        return Encoded(ids, offsets)

    def encode(self, text: str) -> TokenIds:
        """The ids of one text."""
        return np.array(self._backend.encode(replace_surrogates(text), add_special_tokens=False).ids, dtype=np.uint32)

    def token_id(self, token: str) -> int | None:
        """The id of one entry of the vocabulary."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without special tokens.

        Raises:
            DataError: An id is outside the vocabulary.
        """
        text: str = self._backend.decode(check_ids(ids, self.name, self.vocab_size), skip_special_tokens=True)
        return text
