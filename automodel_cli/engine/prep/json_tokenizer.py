"""Tokenizers that a `tokenizer.json` describes, run by Hugging Face `tokenizers`; `gpt2` is one of them.

They are the reference: whatever is faster must give the same ids (`fast_engine.py`).

The vocabulary of `gpt2` is rebuilt from the merge list that ships with the package: the 256 bytes in
GPT-2's order, one entry per merge, then `<|endoftext|>` = 50256, which serves as BOS. Source:
Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from automodel_cli.engine.prep.package_data import GPT2_MERGES, SHA256, read_asset
from automodel_cli.engine.prep.tokenizer import Encoded, TokenIds, check_ids, replace_surrogates
from automodel_cli.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


END_OF_TEXT = "<|endoftext|>"


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
            # The model exposes this id only in its JSON.
            found = json.loads(self._content)["model"].get("unk_id")
            return found if isinstance(found, int) and 0 <= found < self.vocab_size else None
        return None if model.unk_token is None else self.token_id(model.unk_token)

    @cached_property
    def _backend(self) -> Any:
        from tokenizers import Tokenizer

        try:
            backend = Tokenizer.from_str(self._content)
        # The library raises a bare Exception for any fault of the file.
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


def gpt2_tokenizer() -> JsonTokenizer:
    """GPT-2's byte-level BPE, 50,257 entries, as a `tokenizer.json` that any engine can load."""
    # The merge list determines every id, so its hash stands for the content.
    return JsonTokenizer("gpt2", gpt2_json(read_merges()), END_OF_TEXT, END_OF_TEXT, SHA256[GPT2_MERGES])


def gpt2_json(merges: Sequence[str]) -> str:
    """The content of a `tokenizer.json` for these merges, each `left right`."""
    entries = [*byte_alphabet().values(), *(merge.replace(" ", "") for merge in merges), END_OF_TEXT]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    end_of_text = {
        "id": len(entries) - 1,
        "content": END_OF_TEXT,
        **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
        "special": True,
    }
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [end_of_text],
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": None,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {entry: token for token, entry in enumerate(entries)},
                "merges": merges,
            },
        },
        ensure_ascii=False,
    )


def read_merges() -> list[str]:
    """The merges in order of priority, as pairs `left right` in GPT-2's printable alphabet."""
    # The first line is a comment with a version, the last one is empty.
    return read_asset(GPT2_MERGES).split("\n")[1:-1]


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte, in the order of the first 256 ids.

    Printable Latin-1 bytes stand for themselves and come first; the others follow from U+0100.

    >>> alphabet = byte_alphabet()
    >>> len(alphabet), alphabet[ord("A")], alphabet[ord(" ")]
    (256, 'A', 'Ġ')
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
