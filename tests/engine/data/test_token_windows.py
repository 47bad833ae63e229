"""Shards that change while a run reads them: a clear end instead of a killed process, and no end without need."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from automodel_cli.engine.data import token_windows
from automodel_cli.engine.data.token_windows import TokenWindows
from automodel_cli.engine.shards.format import HEADER_BYTES, MAGIC, ShardInfo
from automodel_cli.errors import DataError

NUM_TOKENS = 50_000


@pytest.fixture
def shard(tmp_path) -> Path:
    """Tokens that count up, behind a header's room."""
    path = tmp_path / "train_000000.bin"
    path.write_bytes(bytes(HEADER_BYTES) + np.arange(NUM_TOKENS, dtype=np.uint16).tobytes())
    return path


@pytest.fixture
def last_window(shard, monkeypatch):
    """Reads the last 8 tokens, and looks at the file every time."""
    monkeypatch.setattr(token_windows, "_SECONDS_BETWEEN_LOOKS", 0.0)
    windows = TokenWindows([ShardInfo(shard, NUM_TOKENS, np.dtype("<u2"), MAGIC)], 8)

    def read() -> list[int]:
        return windows.read(np.array([0]), np.array([NUM_TOKENS - 8]))[0].tolist()

    assert read() == list(range(NUM_TOKENS - 8, NUM_TOKENS))
    return read


def test_a_shard_that_is_cut_is_an_error_with_both_lengths(shard, last_window):
    """Reading on would kill the process by SIGBUS."""
    os.truncate(shard, HEADER_BYTES)

    with pytest.raises(DataError, match=r"it had 101,024 bytes, and has 1,024 now") as caught:
        last_window()

    assert caught.value.where == str(shard)


@pytest.mark.parametrize("change", ["deleted", "replaced", "touched"])
def test_what_does_not_change_the_tokens_ends_nothing(shard, last_window, change):
    """The map keeps the old file alive; a time stamp says nothing about content."""
    if change == "touched":
        os.utime(shard, (0, 0))
    else:
        shard.unlink()
    if change == "replaced":
        shard.write_bytes(b"new")

    assert last_window() == list(range(NUM_TOKENS - 8, NUM_TOKENS))


def test_a_shard_that_is_gone_before_it_is_opened_is_named(shard):
    """Long runs open shards that were last seen at their start."""
    windows = TokenWindows([ShardInfo(shard, NUM_TOKENS, np.dtype("<u2"), MAGIC)], 8)
    shard.unlink()

    with pytest.raises(DataError, match="cannot be read any more"):
        windows.read(np.array([0]), np.array([0]))
