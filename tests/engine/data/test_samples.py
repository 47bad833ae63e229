"""Shards that change while a run reads them: a clear end instead of a killed process, and no end without need."""

from __future__ import annotations

import errno
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from automodel_cli.engine.data import samples
from automodel_cli.engine.data.samples import OpenShards
from automodel_cli.engine.shards import tokens as shard_tokens
from automodel_cli.engine.shards.tokens import HEADER_BYTES, ShardInfo, Tokens
from automodel_cli.errors import DataError

NUM_TOKENS = 50_000


@pytest.fixture
def shard(tmp_path) -> Path:
    """Tokens that count up, behind a header's room."""
    path = tmp_path / "train_000000.bin"
    path.write_bytes(bytes(HEADER_BYTES) + np.arange(NUM_TOKENS, dtype=np.uint16).tobytes())
    return path


@pytest.fixture
def last_window(shard):
    """Reads the last 8 tokens."""
    windows = OpenShards([ShardInfo(shard, NUM_TOKENS, np.dtype("<u2"))])

    def read() -> list[int]:
        return windows.read(np.array([0]), np.array([NUM_TOKENS - 8]), 8).tolist()

    assert read() == list(range(NUM_TOKENS - 8, NUM_TOKENS))
    return read


def test_a_shard_that_is_cut_is_an_error_with_both_lengths(shard, last_window):
    """Through a memory map, reading on would kill the process by SIGBUS."""
    os.truncate(shard, HEADER_BYTES)

    with pytest.raises(DataError, match=r"it has 1,024 bytes now, and its tokens need 101,024") as caught:
        last_window()

    assert caught.value.where == str(shard)


@pytest.mark.parametrize("change", ["deleted", "replaced", "touched"])
def test_what_does_not_change_the_tokens_ends_nothing(shard, last_window, change):
    """The open file stays as it was; a time stamp says nothing about content."""
    if change == "touched":
        os.utime(shard, (0, 0))
    else:
        shard.unlink()
    if change == "replaced":
        shard.write_bytes(b"new")

    assert last_window() == list(range(NUM_TOKENS - 8, NUM_TOKENS))


def test_a_shard_that_is_gone_before_it_is_opened_is_named(shard):
    """Long runs open shards that were last seen at their start."""
    windows = OpenShards([ShardInfo(shard, NUM_TOKENS, np.dtype("<u2"))])
    shard.unlink()

    with pytest.raises(DataError, match="cannot be read any more"):
        windows.read(np.array([0]), np.array([0]), 8)


@pytest.mark.parametrize("kept_bytes", [0, HEADER_BYTES, HEADER_BYTES + 7, HEADER_BYTES + 2 * NUM_TOKENS - 1])
@pytest.mark.parametrize("read", ["slice", "one", "some", "ranges of two types"])
def test_however_tokens_are_read_a_cut_shard_is_an_error(shard, tmp_path, kept_bytes, read):
    """While documents are looked for, too, and where shards of two types are mixed; down to a missing half token."""
    info = ShardInfo(shard, NUM_TOKENS, np.dtype("<u2"))
    other = ShardInfo(tmp_path / "wide.bin", 9, np.dtype("<u4"))
    other.path.write_bytes(bytes(HEADER_BYTES + 36))
    tokens, mixed = Tokens(info), OpenShards([info, other])
    last = np.array([NUM_TOKENS - 1])
    reads = {
        "slice": lambda: tokens[:],
        "one": lambda: tokens[-1],
        "some": lambda: tokens[np.array([NUM_TOKENS - 1, 0])],
        "ranges of two types": lambda: mixed.read(np.array([1, 0]), np.append(0, last), np.array([9, 1])),
    }
    assert np.atleast_1d(reads[read]()).max() == NUM_TOKENS - 1
    os.truncate(shard, kept_bytes)

    with pytest.raises(DataError, match=f"it has {kept_bytes:,} bytes now"):
        reads[read]()


def test_a_disk_that_fails_is_an_error_that_names_the_shard(shard, last_window, monkeypatch):
    """A map would end the process by SIGBUS here as well."""

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", fail)

    with pytest.raises(DataError, match="Input/output error") as caught:
        last_window()

    assert caught.value.where == str(shard)


@given(st.lists(st.integers(0, NUM_TOKENS - 1), max_size=40), st.sampled_from([1, 64, 1 << 20]))
def test_single_tokens_are_those_of_an_array(offsets, block_tokens):
    """In any order and with repetitions, wherever the blocks end that are read."""
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_tokens, "_BLOCK_TOKENS", block_tokens)
        path = Path(directory) / "train_000000.bin"
        path.write_bytes(bytes(HEADER_BYTES) + np.arange(NUM_TOKENS, dtype=np.uint16).tobytes())

        found = Tokens(ShardInfo(path, NUM_TOKENS, np.dtype("<u2")))[np.array(offsets, dtype=np.int64)]

    assert found.tolist() == offsets


def test_more_shards_than_may_be_open_are_read_by_many_threads(tmp_path, monkeypatch):
    """A file that is closed while another thread reads it would give the tokens of whatever is opened next."""
    monkeypatch.setattr(samples, "_MAX_OPEN_SHARDS", 2)
    shards = []
    for number in range(8):
        path = tmp_path / f"train_{number:06d}.bin"
        path.write_bytes(bytes(HEADER_BYTES) + np.full(64, number, dtype=np.uint16).tobytes())
        shards.append(ShardInfo(path, 64, np.dtype("<u2")))
    windows, numbers = OpenShards(shards), np.arange(8)

    def read(seed: int) -> bool:
        wanted = np.random.default_rng(seed).permutation(numbers)
        return bool((np.repeat(wanted, 8) == windows.read(wanted, wanted, 8)).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(400)))
