"""What a tokenizer takes and offers, and the simplest of them, `bytes`.

Text is text: whatever a document contains, such as the letters `<|endoftext|>`, is never read
as a special token. Document boundaries are made by preparation, which puts BOS before each.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from automodel_cli.errors import DataError

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


def check_ids(ids: Iterable[int], tokenizer_name: str, vocab_size: int) -> list[int]:
    """The ids as plain integers.

    Raises:
        DataError: An id is outside 0 to `vocab_size - 1`.
    """
    plain = [operator.index(token) for token in ids]
    outside = next((token for token in plain if not 0 <= token < vocab_size), None)
    if outside is not None:
        raise DataError(
            f"token id {outside:,} cannot be decoded: the ids of tokenizer {tokenizer_name!r} go from 0 to "
            f"{vocab_size - 1:,}"
        )
    return plain


def offsets_of(texts: pa.Array) -> npt.NDArray[np.int64]:
    """Where each text begins in the array's data buffer, and where the last one ends: shape (texts + 1,).

    Args:
        texts: `string` or `large_string`, without nulls.
    """
    wide = str(texts.type).startswith("large_")
    buffer = texts.buffers()[1]
    # An array without texts may come without a buffer of offsets.
    if buffer is None or not len(texts):
        return np.zeros(1, dtype=np.int64)
    offsets = np.frombuffer(buffer, dtype=np.int64 if wide else np.int32, count=texts.offset + len(texts) + 1)
    return offsets[texts.offset :].astype(np.int64)


def utf8_of(texts: pa.Array) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """All bytes of the texts, shape (n,), and the offsets of the texts in them, shape (texts + 1,)."""
    offsets = offsets_of(texts)
    data = texts.buffers()[2]
    if data is None:
        return np.empty(0, dtype=np.uint8), offsets
    content = np.frombuffer(data, dtype=np.uint8)[offsets[0] : offsets[-1]]
    return content, offsets - offsets[0]


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
