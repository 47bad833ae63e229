"""A token format: how tokens stand in files, and where the documents in them begin.

`ShardFormat` is the default format; another one derives from it, overrides what differs, and gets a line in
`formats.py`. `prep --format`, `data inspect`, `verify` and `merge`, the check of a configuration and the datasets
reach every format through that table.

The default format has an index beside each shard: `train_000000.bos.idx` beside `train_000000.bin`, a plain array
of little-endian int32 TOKEN offsets, ascending. An index is not trusted: some writers store byte offsets, and an
index may belong to an earlier shard of the same name. So every entry is compared with the token that it points to; if
one differs, the shard is scanned instead. The offsets that are returned therefore always point at BOS tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from automodel_cli.engine.bounded import UnsoundError, read_bytes
from automodel_cli.engine.shards.manifest import DataManifest
from automodel_cli.engine.shards.tokens import (
    Int64Array,
    ShardInfo,
    TokenArray,
    Tokens,
    build_header,
    read_shard_header,
)
from automodel_cli.errors import ConfigError


class ShardFormat:
    """The default format: a header of 1,024 bytes, then uint16 or uint32 tokens.

    Attributes:
        name: For `prep --format`, manifests and `ShardInfo.format`.
        title: For `data inspect`.
        dataset: Class that trains on it; formats of `NanogptDataset` may be mixed.
        lists_documents: The index lists documents, not BOS tokens, and so lists one at the beginning of every file.
    """

    name = "bin"
    title = "current"
    dataset = "NanogptDataset"
    lists_documents = False

    def claims(self, path: Path) -> bool:
        """Whether a file is of this format; a file that no format claims is read by the default format.

        Must not raise; called before `read`, with files of any kind.
        """
        return False

    def read(self, path: Path) -> ShardInfo:
        """Read the header of a file and check it against the size of the file.

        Raises:
            DataError: The file cannot be read, or its header does not match it.
        """
        return read_shard_header(path)

    def starts(self, info: ShardInfo, bos_id: int | None) -> Int64Array:
        """Token offsets of the BOS tokens or, where the index `lists_documents`, of documents; ascending.

        Args:
            info: The file.
            bos_id: Begins a document; `None` takes what the index says.
        """
        known = self.known_bos(info) if bos_id is None else bos_id
        return np.zeros(0, dtype=np.int64) if known is None else load_bos_offsets(info, Tokens(info), known)

    def known_bos(self, info: ShardInfo) -> int | None:
        """The BOS token according to the index: the one token that all its entries point at."""
        offsets = read_index(self.index_path(info.path), info.num_tokens)
        if offsets is None or not len(offsets) or offsets.min() < 0 or offsets.max() >= info.num_tokens:
            return None
        tokens = Tokens(info)[offsets]
        return int(tokens[0]) if bool((tokens == tokens[0]).all()) else None

    def index_problems(
        self, info: ShardInfo, bos_offsets: Int64Array, bos_id: int | None, manifest: DataManifest | None
    ) -> Iterator[str]:
        """Differences between the index and the file.

        Args:
            info: The file.
            bos_offsets: Where BOS tokens were found in it.
            bos_id: The BOS token, as far as it is known.
            manifest: Describes the file.
        """
        path = self.index_path(info.path)
        entries = read_index(path, info.num_tokens)
        if entries is None:
            if path.is_file() and path.stat().st_size:
                size = f"{path.stat().st_size:,} bytes"
                yield f"{size} are no whole number of int32 offsets into {info.num_tokens:,} tokens"
            elif bos_id is not None and manifest is not None and len(bos_offsets):
                yield f"the index of {len(bos_offsets):,} BOS tokens is missing"
        elif bos_id is None and manifest is None:
            yield "its entries do not all point at one and the same token"
        elif bos_id is not None and not np.array_equal(entries, bos_offsets):
            right = int(np.isin(entries, bos_offsets).sum())
            yield f"{right:,} of its {len(entries):,} entries point at the {len(bos_offsets):,} BOS tokens"

    def index_path(self, path: Path) -> Path:
        """The index beside a file."""
        return bos_index_path(path)

    def stored_dtype(self, dtype: np.dtype[Any], bos_id: int | None) -> np.dtype[Any]:
        """The type in which tokens of type `dtype`, uint16 or uint32, are written.

        Raises:
            ConfigError: The format cannot hold such tokens, or needs a BOS token.
        """
        return dtype

    def header(self, num_tokens: int, dtype: np.dtype[Any]) -> bytes:
        """What stands before the tokens; its length is the same for any number of them."""
        return build_header(num_tokens, dtype)

    def index(self, bos_offsets: Int64Array, num_tokens: int, dtype: np.dtype[Any], *, ends_too: bool) -> bytes:
        """The content of the index of a file.

        Args:
            bos_offsets: Token offsets of BOS.
            num_tokens: Tokens of the file.
            dtype: Their type in the file.
            ends_too: The BOS token also ends each document.
        """
        return bos_offsets.astype("<i4").tobytes()


class LegacyFormat(ShardFormat):
    """The header 20240520 of llm.c, which modded-nanogpt's loader reads; two bytes per token.

    The default format reads these files too, and calls them by this name.
    """

    name = "legacy"
    title = "legacy"

    def stored_dtype(self, dtype: np.dtype[Any], bos_id: int | None) -> np.dtype[Any]:
        """uint16, or nothing."""
        if dtype.itemsize != 2:
            raise ConfigError(
                "the format legacy has 2 bytes per token, so a vocabulary has at most 65,536 entries, but this one "
                "has more",
                help="the default --format holds any vocabulary",
            )
        return dtype

    def header(self, num_tokens: int, dtype: np.dtype[Any]) -> bytes:
        """As the default format has it, with another magic and without the size of a token."""
        return build_header(num_tokens, dtype, legacy=True)


def bos_index_path(shard_path: Path) -> Path:
    """The index beside a shard.

    >>> bos_index_path(Path("data/train_000000.bin")).name
    'train_000000.bos.idx'
    """
    return shard_path.with_suffix(".bos.idx")


def load_bos_offsets(info: ShardInfo, tokens: TokenArray | Tokens, bos_id: int) -> Int64Array:
    """Offsets of the BOS tokens of a shard, in tokens, ascending.

    Args:
        info: The shard, beside which an index is looked for.
        tokens: Its tokens, shape (num_tokens,).
        bos_id: The id that begins a document.
    """
    indexed = read_index(bos_index_path(info.path), info.num_tokens)
    if indexed is not None and _points_at_bos(indexed, tokens, bos_id):
        return indexed
    return scan_bos_offsets(tokens, bos_id)


def scan_bos_offsets(tokens: TokenArray | Tokens, bos_id: int, block_tokens: int = 1 << 24) -> Int64Array:
    """Find every BOS token by reading all tokens.

    Args:
        tokens: Shape (num_tokens,).
        bos_id: The id to find.
        block_tokens: Bounds the memory: comparing one block allocates this many bytes.
    """
    found = [
        np.flatnonzero(tokens[start : start + block_tokens] == bos_id) + start
        for start in range(0, len(tokens), block_tokens)
    ]
    return np.concatenate(found).astype(np.int64) if found else np.empty(0, dtype=np.int64)


def document_begins(bos_offsets: Int64Array, *, ends_too: bool) -> Int64Array:
    """Those of the offsets of a BOS token at which documents begin.

    Args:
        bos_offsets: Ascending, from the beginning of the data.
        ends_too: The same token also ends each document, as GPT-2's does with `amcli prep --eos`. Then a document
            begins where that token stands first, or right behind another one.

    >>> document_begins(np.array([0, 7, 8, 20]), ends_too=True).tolist()
    [0, 8]
    """
    if not ends_too:
        return bos_offsets
    begins: Int64Array = bos_offsets[(bos_offsets == 0) | (np.diff(bos_offsets, prepend=-2) == 1)]
    return begins


def read_index(path: Path, num_tokens: int) -> Int64Array | None:
    """The entries of an index as they stand in the file, unchecked.

    Args:
        path: The index.
        num_tokens: Tokens of the shard, the maximum number of entries.

    Returns:
        None if there is no index, no whole number of entries, or too many.
    """
    try:
        raw = read_bytes(path, 4 * num_tokens)
    except (OSError, UnsoundError):
        return None
    if not raw or len(raw) % 4:
        return None
    return np.frombuffer(raw, dtype="<i4").astype(np.int64)


def _points_at_bos(offsets: Int64Array, tokens: TokenArray | Tokens, bos_id: int) -> bool:
    in_range = offsets[0] >= 0 and offsets[-1] < len(tokens) and bool(np.all(np.diff(offsets) > 0))
    return bool(in_range and np.all(tokens[offsets] == bos_id))
