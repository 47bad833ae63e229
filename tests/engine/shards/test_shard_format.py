"""The BOS index is believed only where it points at BOS tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from automodel_cli.engine.shards.shard_format import bos_index_path, load_bos_offsets, scan_bos_offsets
from automodel_cli.engine.shards.tokens import HEADER_BYTES, Tokens, read_shard_header
from automodel_cli.engine.shards.writer import ShardWriter

BOS = 9
TOKENS = np.array([9, 1, 2, 9, 9, 3, 4, 5, 9])


@pytest.fixture
def shard(tmp_path):
    """A shard with its index, and its mapped tokens."""
    with ShardWriter(tmp_path, "train", np.dtype("<u2"), 100, BOS) as writer:
        writer.write(TOKENS)
        writer.close()
    info = read_shard_header(tmp_path / "train_000000.bin")
    return info, Tokens(info)


def test_the_written_index_holds_token_offsets(shard):
    """Raw little-endian int32 offsets, in tokens: what other readers of the format expect."""
    info, tokens = shard

    written = np.frombuffer(bos_index_path(info.path).read_bytes(), dtype="<i4")

    assert written.tolist() == [0, 3, 4, 8]
    assert load_bos_offsets(info, tokens, BOS).tolist() == [0, 3, 4, 8]


def test_a_good_index_spares_the_scan(shard):
    """An index with fewer entries, all right, is taken as it is: so it was read, not the tokens."""
    info, tokens = shard
    bos_index_path(info.path).write_bytes(np.array([3, 8], dtype="<i4").tobytes())

    assert load_bos_offsets(info, tokens, BOS).tolist() == [3, 8]


@pytest.mark.parametrize(
    "content",
    [
        (HEADER_BYTES + 2 * np.array([0, 3, 4, 8])).astype("<i4").tobytes(),
        (2 * np.array([0, 3, 4, 8])).astype("<i4").tobytes(),
        np.array([0, 3, 5], dtype="<i4").tobytes(),
        np.array([8, 4, 3, 0], dtype="<i4").tobytes(),
        np.array([-6, 3], dtype="<i4").tobytes(),
        np.array([3, 9], dtype="<i4").tobytes(),
        b"abc",
        b"",
        None,
    ],
    ids=["byte offsets", "bytes, no header", "not BOS", "descending", "negative", "past end", "odd", "empty", "absent"],
)
def test_a_wrong_index_is_made_again_from_the_tokens(shard, content):
    """Whatever lies beside the shard, the offsets are those of the BOS tokens."""
    info, tokens = shard
    path = bos_index_path(info.path)
    path.unlink()
    if content is not None:
        path.write_bytes(content)

    assert load_bos_offsets(info, tokens, BOS).tolist() == [0, 3, 4, 8]


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 7))
def test_scanning_in_blocks_finds_every_bos(tokens, block_tokens):
    """The size of a block never hides or repeats an offset."""
    found = scan_bos_offsets(np.array(tokens, dtype=np.uint16), 2, block_tokens=block_tokens)

    assert found.tolist() == [place for place, token in enumerate(tokens) if token == 2]
