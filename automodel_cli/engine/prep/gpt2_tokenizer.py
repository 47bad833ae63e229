"""The tokenizer `gpt2`: GPT-2's byte-level BPE, 50,257 entries, without any network.

The vocabulary is rebuilt from the merge list that ships with the package: the 256 bytes in
GPT-2's order, one entry per merge, then `<|endoftext|>` = 50256, which serves as BOS. Source:
Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from automodel_cli.engine.prep.package_data import GPT2_MERGES, SHA256, read_asset
from automodel_cli.engine.prep.token_ids import check_ids
from automodel_cli.engine.prep.tokenizer import TokenIds, replace_surrogates

if TYPE_CHECKING:
    import tokenizers


class Gpt2Tokenizer:
    """Exact GPT-2 token ids; special tokens in a text are encoded as text."""

    name = "gpt2"
    vocab_size = 50_257
    bos_id: int | None = 50_256
    # The merge list determines every id.
    sha256 = SHA256[GPT2_MERGES]

    def __init__(self) -> None:
        merges = read_merges()
        self._token_bytes = vocabulary_bytes(merges)
        self._bpe = _build_bpe(merges)

    def encode_batch(self, texts: Sequence[str]) -> list[TokenIds]:
        """The ids of each text, as uint32 arrays; several threads work on one batch."""
        encoded = self._bpe.encode_batch_fast([replace_surrogates(text) for text in texts], add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without BOS; bytes that are no UTF-8 become U+FFFD.

        Raises:
            DataError: An id is not in 0 to 50,256.
        """
        checked = check_ids(ids, self.name, self.vocab_size)
        joined = b"".join(self._token_bytes[token] for token in checked if token != self.bos_id)
        return joined.decode("utf-8", errors="replace")


def read_merges() -> list[tuple[str, str]]:
    """The merges in order of priority, as pairs in GPT-2's printable alphabet."""
    lines = read_asset(GPT2_MERGES).split("\n")
    # The first line is a comment with a version, the last one is empty.
    return [(left, right) for left, right in (line.split(" ") for line in lines[1:-1])]


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


def vocabulary_bytes(merges: Sequence[tuple[str, str]]) -> list[bytes]:
    """The bytes of each id below 50,256."""
    byte_of = {character: byte for byte, character in byte_alphabet().items()}
    entries = [*byte_of, *(left + right for left, right in merges)]
    return [bytes(byte_of[character] for character in entry) for entry in entries]


def _build_bpe(merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, models, pre_tokenizers

    entries = [*byte_alphabet().values(), *(left + right for left, right in merges)]
    bpe = Tokenizer(models.BPE(vocab={entry: token for token, entry in enumerate(entries)}, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return bpe
