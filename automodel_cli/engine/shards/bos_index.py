"""Where documents begin in a shard: `train_000000.bos.idx` beside `train_000000.bin`.

The file is a plain array of little-endian int32 TOKEN offsets, ascending. An index is not
trusted: some writers store byte offsets, and an index may belong to an earlier shard of the
same name. So every entry is compared with the token that it points to; if one differs, the
shard is scanned instead. What is returned therefore always points at BOS tokens.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from automodel_cli.engine.bounded import UnsoundError, read_bytes
from automodel_cli.engine.shards.format import ShardInfo, TokenArray, Tokens


def bos_index_path(shard_path: Path) -> Path:
    """The index beside a shard.

    >>> bos_index_path(Path("data/train_000000.bin")).name
    'train_000000.bos.idx'
    """
    return shard_path.with_suffix(".bos.idx")


def load_bos_offsets(info: ShardInfo, tokens: TokenArray | Tokens, bos_id: int) -> npt.NDArray[np.int64]:
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


def scan_bos_offsets(tokens: TokenArray | Tokens, bos_id: int, block_tokens: int = 1 << 24) -> npt.NDArray[np.int64]:
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


def document_begins(bos_offsets: npt.NDArray[np.int64], *, ends_too: bool) -> npt.NDArray[np.int64]:
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
    begins: npt.NDArray[np.int64] = bos_offsets[(bos_offsets == 0) | (np.diff(bos_offsets, prepend=-2) == 1)]
    return begins


def read_index(path: Path, num_tokens: int) -> npt.NDArray[np.int64] | None:
    """The entries of an index as they stand in the file, unchecked.

    Args:
        path: The index.
        num_tokens: Of its shard: there are no more entries than that.

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


def _points_at_bos(offsets: npt.NDArray[np.int64], tokens: TokenArray | Tokens, bos_id: int) -> bool:
    in_range = offsets[0] >= 0 and offsets[-1] < len(tokens) and bool(np.all(np.diff(offsets) > 0))
    return bool(in_range and np.all(tokens[offsets] == bos_id))
