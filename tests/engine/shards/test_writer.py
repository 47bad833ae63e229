"""Shards roll over exactly, hold what was written, and appear only when complete."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automodel_cli.engine.shards.tokens import HEADER_BYTES, MAX_SHARD_TOKENS, Tokens, read_shard_header
from automodel_cli.engine.shards.writer import ShardWriter
from automodel_cli.errors import ConfigError, DataError

UINT16 = np.dtype("<u2")


@settings(max_examples=30, deadline=None)
@given(
    chunks=st.lists(st.lists(st.sampled_from([0, 1, 65_535]), max_size=12), max_size=6),
    shard_tokens=st.integers(1, 9),
    itemsize=st.sampled_from([2, 4]),
)
def test_what_is_written_is_read_back_however_it_is_cut(chunks, shard_tokens, itemsize):
    """The shards joined are the chunks joined; all but the last have exactly `shard_tokens`; records tell the truth."""
    whole = [token for chunk in chunks for token in chunk]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)

        with ShardWriter(directory, "train", np.dtype(f"<u{itemsize}"), shard_tokens, 0) as writer:
            for chunk in chunks:
                writer.write(np.array(chunk, dtype=np.uint32))
            records = writer.close()

        read = [Tokens(read_shard_header(directory / record.name))[:].tolist() for record in records]
        hashes = [hashlib.sha256((directory / record.name).read_bytes()).hexdigest() for record in records]
        sizes = [(directory / record.name).stat().st_size for record in records]
        indexes = [np.fromfile((directory / r.name).with_suffix(".bos.idx"), dtype="<i4").tolist() for r in records]
        hidden = [path.name for path in directory.iterdir() if path.name.startswith(".")]

    assert [token for shard in read for token in shard] == whole
    assert all(len(shard) == shard_tokens for shard in read[:-1])
    assert [record.num_tokens for record in records] == [len(shard) for shard in read]
    assert [record.max_token_id for record in records] == [max(shard) for shard in read]
    assert [record.sha256 for record in records] == hashes
    assert [record.num_bytes for record in records] == sizes
    assert [record.name for record in records] == [f"train_{n:06d}.bin" for n in range(len(records))]
    assert indexes == [[place for place, token in enumerate(shard) if token == 0] for shard in read]
    assert hidden == []


@pytest.mark.parametrize("token", [65_536, 2**40, -1])
def test_an_id_that_does_not_fit_is_refused_before_it_is_narrowed(tmp_path, token):
    """65,536 must not become 0 on its way to the disk."""
    with ShardWriter(tmp_path, "val", UINT16, 10, None) as writer, pytest.raises(DataError, match=f"{token:,}"):
        writer.write(np.array([1, token], dtype=np.int64))

    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_writer_leaves_no_unfinished_shard(tmp_path):
    """Finished shards stay, the one in work vanishes with the exception."""

    def write_until_interrupted():
        with ShardWriter(tmp_path, "train", UINT16, 4, None) as writer:
            writer.write(np.arange(6))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_until_interrupted()

    assert [path.name for path in tmp_path.iterdir()] == ["train_000000.bin"]


def test_a_shard_in_work_is_hidden(tmp_path):
    """No pattern such as `train_*.bin` matches a shard that is not complete."""
    with ShardWriter(tmp_path, "train", UINT16, 4, None) as writer:
        writer.write(np.arange(3))

        assert list(tmp_path.glob("train_*")) == []


def test_a_full_disk_is_an_error_with_numbers(tmp_path):
    """`/dev/full` accepts no byte: the user reads how much room there is, and gets no bus error."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / ".train_000000.bin.tmp").symlink_to("/dev/full")

    with ShardWriter(tmp_path, "train", UINT16, 10**6, None) as writer, pytest.raises(DataError, match="disk is full"):
        writer.write(np.zeros(10**5, dtype=np.uint16))


@pytest.mark.parametrize("shard_tokens", [0, -1, 2**31])
def test_a_shard_size_that_the_header_cannot_count_is_refused(tmp_path, shard_tokens):
    """The header has 31 bits for the number of tokens."""
    with pytest.raises(ConfigError, match="2,147,483,647"):
        ShardWriter(tmp_path, "train", UINT16, shard_tokens, None)


@pytest.mark.slow
def test_a_shard_is_continued_across_the_32_bit_boundary_of_its_bytes(tmp_path):
    """An unfinished shard of 4 GiB, which is a hole in the file: it goes on there and rolls over where it must."""
    begun = MAX_SHARD_TOKENS - 3
    with (tmp_path / ".train_000000.bin.tmp").open("wb") as file:
        file.truncate(HEADER_BYTES + 2 * begun)
    writer = ShardWriter(tmp_path, "train", UINT16, MAX_SHARD_TOKENS, 7)
    writer.continue_from([], begun)

    writer.write(np.array([7, 1, 2, 7, 3]))
    first, second = writer.close()

    assert (first.num_tokens, first.num_bytes, second.num_tokens) == (MAX_SHARD_TOKENS, 2**32 + HEADER_BYTES - 2, 2)
    info = read_shard_header(tmp_path / "train_000000.bin")
    assert Tokens(info)[-3:].tolist() == [7, 1, 2]
    assert np.fromfile(tmp_path / "train_000000.bos.idx", dtype="<i4").tolist() == [begun]
    assert np.fromfile(tmp_path / "train_000001.bos.idx", dtype="<i4").tolist() == [0]
