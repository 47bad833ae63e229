"""Any tokenizer that `transformers.AutoTokenizer` can load, from a directory or from the hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from automodel_cli.engine.prep.token_ids import check_ids
from automodel_cli.engine.prep.tokenizer import TokenIds, replace_surrogates
from automodel_cli.errors import DataError


class HubTokenizer:
    """A Hugging Face tokenizer.

    BOS is the tokenizer's own, or its end-of-text token when it has none, as GPT-2 does.

    Args:
        name: A directory or a name on the hub.

    Raises:
        DataError: `transformers` cannot load it; the message carries its reason.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._tokenizer = _from_pretrained(name)
        self.vocab_size: int = len(self._tokenizer)
        bos_id = self._tokenizer.bos_token_id
        self.bos_id: int | None = self._tokenizer.eos_token_id if bos_id is None else bos_id
        self.sha256 = _sha256(self._tokenizer)

    def encode_batch(self, texts: Sequence[str]) -> list[TokenIds]:
        """The ids of each text, as uint32 arrays, without special tokens."""
        clean = [replace_surrogates(text) for text in texts]
        if not clean:
            return []
        encoded = self._tokenizer(
            clean, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
        )
        return [np.array(ids, dtype=np.uint32) for ids in encoded["input_ids"]]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without special tokens.

        Raises:
            DataError: An id is outside the vocabulary.
        """
        checked = check_ids(ids, self.name, self.vocab_size)
        text: str = self._tokenizer.decode(checked, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def _from_pretrained(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    # Transformers and the hub client raise OSError, ValueError, KeyError, httpx and JSON errors here,
    # for what is to the user one thing: this name gives no tokenizer.
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(
            f"the tokenizer {name!r} cannot be loaded: {reason}",
            help="`bytes` and `gpt2` work without network; a directory with a tokenizer.json works too",
        ) from error


def _sha256(tokenizer: Any) -> str:
    content = (
        tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else json.dumps(sorted(tokenizer.get_vocab().items()))
    )
    return hashlib.sha256(content.encode()).hexdigest()
