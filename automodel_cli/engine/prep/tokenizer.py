"""What a tokenizer offers, and how one is found by name.

`bytes` and `gpt2` need no network and no files but the package's own. Any other name, or a
directory, goes to `transformers.AutoTokenizer`, which is imported only then.

Text is text: whatever a document contains, such as the letters `<|endoftext|>`, is never read
as a special token. Document boundaries are made by preparation, which puts BOS before each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

TokenIds = npt.NDArray[np.uint32]


class Tokenizer(Protocol):
    """Text to token ids and back.

    Attributes:
        name: What `load_tokenizer` takes.
        vocab_size: Every id is below it, BOS included.
        bos_id: The id that begins a document; `None` when the vocabulary has none.
        sha256: Equal hashes mean equal ids for any text.
    """

    name: str
    vocab_size: int
    bos_id: int | None
    sha256: str

    def encode_batch(self, texts: Sequence[str]) -> list[TokenIds]:
        """The ids of each text, without BOS."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; BOS is a boundary and becomes nothing, broken UTF-8 becomes U+FFFD."""
        ...


def load_tokenizer(name: str) -> Tokenizer:
    """Find a tokenizer by name.

    Args:
        name: `bytes`, `gpt2`, a directory with a tokenizer, or a name on the Hugging Face hub.

    Raises:
        DataError: The tokenizer cannot be loaded.
    """
    return _BUILTIN.get(name, _load_hub)(name)


def _load_bytes(_: str) -> Tokenizer:
    from automodel_cli.engine.prep.byte_tokenizer import ByteTokenizer

    return ByteTokenizer()


def _load_gpt2(_: str) -> Tokenizer:
    from automodel_cli.engine.prep.gpt2_tokenizer import Gpt2Tokenizer

    return Gpt2Tokenizer()


def _load_hub(name: str) -> Tokenizer:
    from automodel_cli.engine.prep.hub_tokenizer import HubTokenizer

    return HubTokenizer(name)


_BUILTIN: dict[str, Callable[[str], Tokenizer]] = {"bytes": _load_bytes, "gpt2": _load_gpt2}
BUILTIN_TOKENIZERS = tuple(_BUILTIN)


def replace_surrogates(text: str) -> str:
    r"""Replace lone surrogates, which no UTF-8 text can hold, by U+FFFD; join those in pairs.

    JSON escapes can smuggle them into a document, and tokenizers differ in what they do then.

    >>> replace_surrogates("a\ud800b") == "a\ufffdb"
    True
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
