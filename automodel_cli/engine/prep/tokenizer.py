"""What a tokenizer offers, and how one is found by name.

`bytes` and `gpt2` need no network and no files but the package's own. Any other name is a
directory or a name on the Hugging Face hub, and its `tokenizer.json` is read; `transformers` is
imported only for a tokenizer that has none.

Text is text: whatever a document contains, such as the letters `<|endoftext|>`, is never read
as a special token. Document boundaries are made by preparation, which puts BOS before each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

TokenIds = npt.NDArray[np.uint32]


class Encoded(NamedTuple):
    """The ids of several texts in one flat array, without special tokens.

    Attributes:
        ids: uint32, shape (n,); text `i` has `ids[offsets[i]:offsets[i + 1]]`.
        offsets: int64, shape (texts + 1,), from 0 to n.
    """

    ids: TokenIds
    offsets: npt.NDArray[np.int64]


class Encoder(Protocol):
    """Text to token ids, from several threads at once.

    Attributes:
        engine: Name and version of the program that does it.
    """

    engine: str

    def encode_batch(self, texts: pa.Array) -> Encoded:
        """The ids of strings without nulls, without BOS."""
        ...


class Tokenizer(Encoder, Protocol):
    """Text to token ids and back.

    Attributes:
        name: What `load_tokenizer` takes.
        vocab_size: Every id is below it, BOS included.
        bos_id: The id that begins a document; `None` when the vocabulary has none.
        eos_id: The id that ends a text; `None` when the vocabulary has none.
        unk_id: The id of what the vocabulary has no entry for; `None` when it has one for everything.
        sha256: Equal hashes mean equal ids for any text.
        json: The `tokenizer.json` that other engines can load; `None` when there is none.
    """

    name: str
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    sha256: str
    json: str | None

    def encode(self, text: str) -> TokenIds:
        """The ids of one text, without BOS; lone surrogates are read as U+FFFD."""
        ...

    def token_id(self, token: str) -> int | None:
        """The id of one entry of the vocabulary, `None` when there is no such entry."""
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
    return _BUILTIN.get(name, _load_named)(name)


def _load_bytes(_: str) -> Tokenizer:
    from automodel_cli.engine.prep.byte_tokenizer import ByteTokenizer

    return ByteTokenizer()


def _load_gpt2(_: str) -> Tokenizer:
    from automodel_cli.engine.prep.gpt2_tokenizer import gpt2_tokenizer

    return gpt2_tokenizer()


def _load_named(name: str) -> Tokenizer:
    from automodel_cli.engine.prep.named_tokenizer import named_tokenizer

    return named_tokenizer(name)


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
