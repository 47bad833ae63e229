"""Samples of `NanogptDataset`: what they contain, what is refused, and what identifies them."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automodel_cli.engine.data.nanogpt_dataset import NanogptDataset
from automodel_cli.engine.shards.shard_format import bos_index_path
from automodel_cli.errors import ConfigError, DataError


def write_documents(directory: Path, shards, bos_id=0) -> str:
    """Shards with given tokens."""
    from automodel_cli.engine.shards.writer import ShardWriter

    directory.mkdir(exist_ok=True)
    for number, tokens in enumerate(shards):
        with ShardWriter(directory, f"s{number}", np.dtype("<u2"), max(len(tokens), 1), bos_id) as writer:
            writer.write(np.array(tokens))
            writer.close()
    return str(directory / "s*.bin")


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=4), seq_len=st.integers(1, 9))
def test_every_transition_inside_a_shard_is_trained_on_exactly_once(write_shards, tmp_path_factory, lengths, seq_len):
    """The (input, label) pairs of one epoch are the neighbours in each shard, up to its last whole sample."""
    if max(lengths) <= seq_len:
        return
    pattern = write_shards(tmp_path_factory.mktemp("d"), lengths, modulus=60_000)

    dataset = NanogptDataset(pattern, seq_len)
    batch = dataset.gather(np.arange(len(dataset)))

    begins = np.cumsum([0, *lengths])[:-1]
    expected = [
        (begin + place, begin + place + 1)
        for begin, length in zip(begins.tolist(), lengths, strict=True)
        for place in range(max(length - 1, 0) // seq_len * seq_len)
    ]
    assert list(zip(batch["input_ids"].ravel().tolist(), batch["labels"].ravel().tolist(), strict=True)) == expected
    assert dataset.num_unused_tokens == sum(lengths) - len(expected)


def test_a_batch_equals_its_samples(small_shards):
    """`gather` and `__getitem__` agree for any ids, also repeated and out of order, in type and layout."""
    dataset = NanogptDataset(small_shards, 4)
    ids = np.array([18, 0, 5, 6, 0, 12])

    batch = dataset.gather(ids)

    for name in ("input_ids", "labels"):
        assert np.array_equal(batch[name], np.stack([dataset[int(i)][name] for i in ids]))
        assert batch[name].shape == (6, 4)
        assert batch[name].dtype == np.int64
        assert batch[name].flags.c_contiguous
        assert batch[name].flags.writeable


def test_shards_of_both_token_sizes_mix(write_shards, tmp_path):
    """An id beyond 65,535 survives beside shards of two bytes per token."""
    write_shards(tmp_path / "a", [9])
    write_shards(tmp_path / "b", [9], dtype="<u4", modulus=1)
    raw = bytearray((tmp_path / "b" / "s0_000000.bin").read_bytes())
    raw[1024:1028] = (70_000).to_bytes(4, "little")
    (tmp_path / "b" / "s0_000000.bin").write_bytes(raw)

    dataset = NanogptDataset([str(tmp_path / "a/*.bin"), str(tmp_path / "b/*.bin")], 4)

    assert dataset.gather(np.array([0, 2]))["input_ids"].tolist() == [[0, 1, 2, 3], [70_000, 0, 0, 0]]


@settings(max_examples=60, deadline=None)
@given(
    shards=st.lists(st.lists(st.sampled_from([0, 0, 1]), min_size=5, max_size=30), min_size=1, max_size=3),
    seq_len=st.integers(1, 6),
)
def test_aligned_samples_all_begin_at_bos_and_never_overlap(tmp_path_factory, shards, seq_len):
    """They are the greedy choice: first BOS, then the next one at or after the end of the sample's inputs."""
    expected = []
    for tokens in shards:
        place = 0
        while place + seq_len < len(tokens):
            if tokens[place] == 0:
                expected.append(tokens[place : place + seq_len])
                place += seq_len
            else:
                place += 1
    pattern = write_documents(tmp_path_factory.mktemp("d"), shards)
    if not expected:
        with pytest.raises(DataError):
            NanogptDataset(pattern, seq_len, align_to_bos=True, bos_token=0)
        return

    dataset = NanogptDataset(pattern, seq_len, align_to_bos=True, bos_token=0)

    assert dataset.gather(np.arange(len(dataset)))["input_ids"].tolist() == expected


def test_alignment_does_not_depend_on_the_index(tmp_path):
    """Without an index, or with one of byte offsets, the samples are the same."""
    pattern = write_documents(tmp_path, [[0, 1, 2, 0, 3, 4, 5, 0, 6, 7]])
    index = bos_index_path(next(tmp_path.glob("*.bin")))
    with_index = NanogptDataset(pattern, 2, align_to_bos=True, bos_token=0)

    index.write_bytes((1024 + 2 * np.array([0, 3, 7])).astype("<i4").tobytes())
    with_byte_offsets = NanogptDataset(pattern, 2, align_to_bos=True, bos_token=0)
    index.unlink()
    without = NanogptDataset(pattern, 2, align_to_bos=True, bos_token=0)

    assert [with_byte_offsets.fingerprint, without.fingerprint] == [with_index.fingerprint] * 2
    assert len(with_byte_offsets) == len(without) == len(with_index) == 3


def test_alignment_without_a_known_bos_token_says_what_to_set(small_shards):
    """No manifest, no bos_token: nothing is guessed."""
    with pytest.raises(DataError, match="bos_token: 50256"):
        NanogptDataset(small_shards, 4, align_to_bos=True)


def test_prepared_data_know_their_bos_token_and_largest_id(tiny_data):
    """The manifest beside the shards spares the user both settings."""
    dataset = NanogptDataset(str(tiny_data / "train_*.bin"), 16, align_to_bos=True)

    begins = dataset.gather(np.arange(len(dataset)))["input_ids"][:, 0]

    assert set(begins.tolist()) == {256}
    assert dataset.max_token_id == 256
    assert dataset.manifest is not None


def test_without_a_manifest_the_largest_id_is_unknown(small_shards):
    """A guess here would switch off the loader's check."""
    assert NanogptDataset(small_shards, 4).max_token_id is None


@pytest.mark.parametrize("index", [19, -1, 10**9])
def test_a_sample_that_does_not_exist_is_an_index_error(small_shards, index):
    """Iteration by index must end, and -1 must not wrap around."""
    with pytest.raises(IndexError, match="0 to 18"):
        NanogptDataset(small_shards, 4)[index]


def test_shards_that_are_all_too_short_are_refused_with_the_numbers(small_shards):
    """The message has seq_len, what it needs, and what the longest shard has."""
    with pytest.raises(DataError, match=r"(?s)seq_len 64 needs .* 65 tokens.*of 3 has 55.*seq_len 54 or less"):
        NanogptDataset(small_shards, 64)


def test_a_shard_that_is_too_short_gives_no_sample(small_shards):
    """One short shard among others is no reason to stop; its tokens are counted as unused."""
    dataset = NanogptDataset(small_shards, 4)

    assert len(dataset) == 6 + 0 + 13
    assert dataset.num_tokens == 86
    assert dataset.num_unused_tokens == 86 - 19 * 4


@pytest.mark.parametrize("seq_len", [0, -3])
def test_a_sample_needs_at_least_one_input(small_shards, seq_len):
    """A division by zero later would not say why."""
    with pytest.raises(ConfigError, match=f"seq_len is {seq_len}"):
        NanogptDataset(small_shards, seq_len)


def test_the_fingerprint_follows_the_data_not_their_place(write_shards, small_shards, tmp_path):
    """Equal after a copy to another directory; different for other tokens, seq_len, alignment or order of shards."""
    source = Path(small_shards).parent
    copied = shutil.copytree(source, tmp_path / "copy")
    other = write_shards(tmp_path / "other", [27, 4, 55], modulus=50)
    paths = sorted(source.glob("*.bin"))
    reference = NanogptDataset(small_shards, 4).fingerprint

    others = [
        NanogptDataset(other, 4),
        NanogptDataset(small_shards, 5),
        NanogptDataset(small_shards, 4, align_to_bos=True, bos_token=0),
        NanogptDataset(paths[::-1], 4),
    ]

    assert NanogptDataset(str(copied / "s*.bin"), 4).fingerprint == reference
    assert reference not in {dataset.fingerprint for dataset in others}


def test_more_shards_than_may_be_open_at_once(write_shards, tmp_path, monkeypatch):
    """Closed maps are opened again when needed; the samples stay right."""
    monkeypatch.setattr("automodel_cli.engine.data.samples._MAX_OPEN_SHARDS", 2)
    dataset = NanogptDataset(write_shards(tmp_path, [5] * 7), 4)

    for _ in range(3):
        assert dataset.gather(np.arange(7))["input_ids"].ravel().tolist() == [n for n in range(35) if n % 5 != 4]


def test_a_dataset_survives_pickling(small_shards):
    """A loader of another framework may send it to a spawned process."""
    dataset = NanogptDataset(small_shards, 4)
    dataset.gather(np.arange(3))

    copied = pickle.loads(pickle.dumps(dataset))

    assert copied.fingerprint == dataset.fingerprint
    assert np.array_equal(copied[7]["labels"], dataset[7]["labels"])


def test_the_order_follows_the_settings(small_shards):
    """Shuffled samples; or shuffled files; or neither: each is a permutation of the samples."""
    positions = np.arange(19)

    orders = {
        (shuffle, files): NanogptDataset(small_shards, 4, shuffle=shuffle, shuffle_files=files)
        .sample_order(1)
        .order(positions)
        .tolist()
        for shuffle in (True, False)
        for files in (True, False)
    }

    assert all(sorted(order) == positions.tolist() for order in orders.values())
    assert orders[False, False] == positions.tolist()
    assert orders[True, True] == orders[True, False] != positions.tolist()
    assert orders[False, True] in (positions.tolist(), [*range(6, 19), *range(6)])


def test_a_sample_is_located_by_file_and_token(small_shards):
    """The error about a bad token leads to its bytes."""
    path, offset = NanogptDataset(small_shards, 4).locate(8)

    assert path.endswith("s2_000000.bin")
    assert offset == 8
