"""What we write is read by the tools that made these formats.

Each reader here is written afresh from the description of the format, with `struct` and files alone: the
header of 256 int32, the tokens behind it, and the index of token offsets beside it.
"""

from __future__ import annotations

import struct
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest

from automodel_cli.engine.shards.formats import FORMATS
from automodel_cli.engine.shards.tokens import Tokens, read_shard_header
from automodel_cli.engine.shards.writer import ShardWriter
from automodel_cli.errors import ConfigError

BOS = 256


def read_as_nemo(path: Path) -> np.ndarray:
    """NeMo AutoModel's `NanogptDataset`: both magics, version 1, and the size of a token in the fourth number."""
    header = struct.unpack("<256i", path.read_bytes()[:1024])
    assert header[0] in (278895051, 20240520)
    assert header[1] == 1
    size = 2 if header[0] == 20240520 else header[3]
    dtype = {2: np.uint16, 4: np.uint32}[size]
    return np.memmap(path, dtype=dtype, mode="r", offset=1024, shape=(header[2],))


def aligned_samples_as_nemo(path: Path, seq_len: int) -> list[list[int]]:
    """Its loop with `align_to_bos`: from one entry of the index to the next at or after the end of a sample."""
    tokens = read_as_nemo(path)
    index = np.fromfile(path.with_suffix(".bos.idx"), dtype=np.int32)
    samples = []
    place = 0
    while (index >= place).any():
        place = int(index[index >= place][0])
        if place + seq_len >= len(tokens):
            break
        samples.append(tokens[place : place + seq_len + 1].tolist())
        place += seq_len + 1
    return samples


def read_as_modded_nanogpt(path: Path) -> np.ndarray:
    """modded-nanogpt's loader: the legacy magic only, uint16 that fill the file to its last byte."""
    with path.open("rb") as file:
        header = np.frombuffer(file.read(256 * 4), dtype=np.int32)
        assert header[0] == 20240520
        assert header[1] == 1
        tokens = np.empty(int(header[2]), dtype=np.uint16)
        assert file.readinto(tokens) == 2 * int(header[2])
        assert file.read() == b""
    return tokens


def read_as_megatron(path: Path) -> list[list[int]]:
    """Megatron's IndexedDataset: one array for each sequence, by its pointer and length; documents by index."""
    raw = path.with_suffix(".idx").read_bytes()
    assert raw[:9] == b"MMIDIDX\x00\x00"
    version, code, num_sequences, num_indices = struct.unpack_from("<QBQQ", raw, 9)
    assert version == 1
    dtype = {4: np.int32, 8: np.uint16}[code]
    lengths = np.frombuffer(raw, np.int32, num_sequences, 34)
    pointers = np.frombuffer(raw, np.int64, num_sequences, 34 + 4 * num_sequences)
    documents = np.frombuffer(raw, np.int64, num_indices, 34 + 12 * num_sequences)
    assert len(raw) == 34 + 12 * num_sequences + 8 * num_indices
    assert documents[-1] == num_sequences
    tokens = path.read_bytes()
    sequences = [
        np.frombuffer(tokens, dtype, length, pointer).tolist()
        for pointer, length in zip(pointers, lengths, strict=True)
    ]
    return [list(chain.from_iterable(sequences[begin:end])) for begin, end in pairwise(documents)]


@pytest.fixture
def documents(random_documents):
    return random_documents(40, seed=3)


def stream(documents):
    return [token for document in documents for token in (BOS, *document)]


@pytest.mark.parametrize("vocab_size", [257, 100_000])
@pytest.mark.parametrize("form", ["bin", "legacy"])
def test_nemo_reads_our_shards(prepare_documents, documents, tmp_path, form, vocab_size):
    """All tokens of all shards, of either size; and with our index every aligned sample begins at BOS."""
    if form == "legacy" and vocab_size > 65_536:
        return
    directory = prepare_documents(
        tmp_path / "x", {"train": documents}, shard_tokens=300, vocab_size=vocab_size, form=FORMATS[form]
    )
    shards = sorted(directory.glob("train_*.bin"))

    assert np.concatenate([read_as_nemo(shard) for shard in shards]).tolist() == stream(documents)
    samples = [sample for shard in shards for sample in aligned_samples_as_nemo(shard, 16)]
    assert len(samples) > 10
    assert {sample[0] for sample in samples} == {BOS}


def test_modded_nanogpt_reads_the_legacy_format(prepare_documents, documents, tmp_path):
    """Which our own reader reads too."""
    directory = prepare_documents(tmp_path / "x", {"train": documents}, shard_tokens=300, form=FORMATS["legacy"])
    shards = sorted(directory.glob("train_*.bin"))

    assert np.concatenate([read_as_modded_nanogpt(shard) for shard in shards]).tolist() == stream(documents)
    own = [Tokens(read_shard_header(shard))[:] for shard in shards]
    assert np.concatenate(own).tolist() == stream(documents)


@pytest.mark.parametrize("vocab_size", [257, 100_000])
def test_megatron_reads_its_format(prepare_documents, documents, tmp_path, vocab_size):
    """The documents, one by one; those that a file's end cuts come in two pieces."""
    directory = prepare_documents(
        tmp_path / "x", {"train": documents}, shard_tokens=300, vocab_size=vocab_size, form=FORMATS["megatron"]
    )

    pieces = [piece for shard in sorted(directory.glob("train_*.bin")) for piece in read_as_megatron(shard)]

    joined = []
    for piece in pieces:
        if piece[0] == BOS:
            joined.append(piece[1:])
        else:
            joined[-1] += piece
    assert joined == documents


def test_formats_that_cannot_hold_the_data_are_refused(tmp_path):
    """A large vocabulary in two bytes, and documents that nothing tells apart."""
    with pytest.raises(ConfigError, match=r"at most 65,536 entries"):
        ShardWriter(tmp_path, "train", np.dtype("<u4"), 100, BOS, FORMATS["legacy"])
    with pytest.raises(ConfigError, match="needs a BOS token"):
        ShardWriter(tmp_path, "train", np.dtype("<u2"), 100, None, FORMATS["megatron"])
