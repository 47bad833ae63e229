"""Packs: every document once and whole, in as few packs as best fit finds, with nothing learnt across borders."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automodel_cli.engine.data.megatron_dataset import MegatronPretraining
from automodel_cli.engine.data.nanogpt_dataset import NanogptDataset
from automodel_cli.engine.data.packed_dataset import PackedDataset, cut_documents
from automodel_cli.engine.data.packing import PackPlan
from automodel_cli.engine.shards.megatron import MegatronFormat
from automodel_cli.errors import ConfigError, DataError

DOCUMENTS = st.lists(st.lists(st.integers(0, 255), max_size=40), min_size=1, max_size=25)


def best_fit_decreasing(lengths, size):
    """One document after the other, longest first, each into the fullest pack that has room."""
    packs = []
    for length in sorted(lengths, reverse=True):
        fitting = [pack for pack in packs if sum(pack) + length <= size]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            packs.append([length])
    return sorted(map(sum, packs))


@settings(max_examples=150, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=60), room=st.integers(0, 30))
def test_the_plan_is_best_fit_decreasing(lengths, room):
    """Packs as full as one document at a time makes them, whatever is equal; each document is in exactly one."""
    size = max(lengths) + room

    plan = PackPlan(np.array(lengths), size)
    documents, counts = plan.documents(np.arange(plan.num_packs))
    packs = [pack.tolist() for pack in np.split(documents, np.cumsum(counts)[:-1])]

    assert sorted(document for pack in packs for document in pack) == list(range(len(lengths)))
    assert sorted(sum(lengths[document] for document in pack) for pack in packs) == best_fit_decreasing(lengths, size)
    assert plan.num_padded == plan.num_packs * size - sum(lengths)


def rows_of(dataset):
    """The documents of all packs as (inputs, labels, positions), pads left out."""
    batch = dataset.gather(np.arange(len(dataset)))
    found = []
    for row in range(len(dataset)):
        numbers = batch["document_ids"][row]
        for number in range(numbers.max() + 1):
            here = numbers == number
            found.append(tuple(batch[name][row][here].tolist() for name in ("input_ids", "labels", "position_ids")))
    return [document for document in found if document[1] != [-100] * len(document[1])]


@settings(max_examples=30, deadline=None)
@given(documents=DOCUMENTS, size=st.integers(2, 30), shard_tokens=st.integers(20, 200))
def test_every_transition_within_a_document_is_learnt_exactly_once(
    prepare_documents, tmp_path_factory, documents, size, shard_tokens
):
    """And none across documents. Cut documents keep the transition at the cut; what a shard's end cuts is two."""
    directory = prepare_documents(tmp_path_factory.mktemp("d") / "x", {"train": documents}, shard_tokens=shard_tokens)
    tokens = [token for document in documents for token in (256, *document)]
    expected = Counter(
        (place, left, right)
        for place, (left, right) in enumerate(pairwise(tokens))
        if right != 256 and (place + 1) % shard_tokens
    )
    if not expected:  # not even a sample of one token, or only documents without text
        with pytest.raises(DataError, match=r"nothing to learn|prepare more text"):
            PackedDataset(NanogptDataset(str(directory / "*.bin"), 1), size)
        return

    dataset = PackedDataset(NanogptDataset(str(directory / "*.bin"), 1), size)
    batch = dataset.gather(np.arange(len(dataset)))

    learnt = batch["labels"] != -100
    pairs = Counter(zip(batch["input_ids"][learnt].tolist(), batch["labels"][learnt].tolist(), strict=True))
    wanted: Counter = Counter()
    for (_, left, right), count in expected.items():
        wanted[left, right] += count
    assert pairs == wanted


def test_a_pack_holds_whole_documents_with_positions_of_their_own(prepare_documents, tmp_path):
    """Lengths 6, 3 and 2 (with BOS) in packs of 8: 6 and 2 together, 3 alone."""
    directory = prepare_documents(tmp_path / "x", {"train": [[1, 2, 3, 4, 5], [6, 7], [8]]})

    dataset = PackedDataset(NanogptDataset(str(directory / "*.bin"), 4), 8)

    batch = {name: values.tolist() for name, values in dataset.gather(np.array([0, 1])).items()}
    assert batch == {
        "input_ids": [[256, 1, 2, 3, 4, 5, 256, 8], [256, 6, 7, 0, 0, 0, 0, 0]],
        "labels": [[1, 2, 3, 4, 5, -100, 8, -100], [6, 7, *[-100] * 6]],
        "position_ids": [[0, 1, 2, 3, 4, 5, 0, 1], [0, 1, 2, 0, 1, 2, 3, 4]],
        "document_ids": [[0, 0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 1, 1]],
    }
    assert dataset.num_padded == 5


def test_only_a_document_longer_than_a_pack_is_cut():
    """10 tokens in packs of 4: 4, 4 and 2; the first two know what follows. One token alone has no label."""
    pieces = cut_documents(np.array([0, 10, 11, 16]), num_tokens=20, size=4)

    assert pieces.offsets.tolist() == [0, 4, 8, 11, 16]
    assert pieces.lengths.tolist() == [4, 4, 2, 4, 4]
    assert pieces.continues.tolist() == [True, True, False, True, False]


def test_packs_are_those_of_a_blend(prepare_documents, random_documents, tmp_path):
    """A pack holds documents of one part, and parts take turns by weight."""
    a = prepare_documents(tmp_path / "a", {"train": [[1] * 3] * 8})
    b = prepare_documents(tmp_path / "b", {"train": [[2] * 5] * 9})
    dataset = PackedDataset(NanogptDataset(["1", str(a / "*.bin"), "3", str(b / "*.bin")], 2), 10)

    ids = dataset.sample_order(4).order(np.arange(40))

    inputs = dataset.gather(ids)["input_ids"]
    kinds = [set(row.tolist()) - {0, 256} for row in inputs]
    assert kinds.count({1}) == 10
    assert kinds.count({2}) == 30


def test_megatron_documents_are_packed_too(prepare_documents, random_documents, tmp_path):
    """In the part of the file that belongs to the split: the same packs as from our own shards."""
    documents = random_documents(20)
    ours = prepare_documents(tmp_path / "a", {"train": documents[:16]}, shard_tokens=10_000)
    theirs = prepare_documents(tmp_path / "b", {"train": documents}, shard_tokens=10_000, form=MegatronFormat())

    packed = PackedDataset(MegatronPretraining(str(theirs / "train_*"), 4, split="80,10,10"), 64)
    same = PackedDataset(NanogptDataset(str(ours / "*.bin"), 4), 64)
    rest = PackedDataset(MegatronPretraining(str(theirs / "train_*"), 4, split="80,10,10", splits_to_build="test"), 64)

    assert rows_of(packed) == rows_of(same)
    assert sorted(inputs for inputs, _, _ in rows_of(rest)) == sorted([256, *each] for each in documents[18:])


def test_the_packs_are_the_same_every_time_and_the_fingerprint_knows_them(prepared):
    """A function of the data and the size; `seq_len` of the dataset has no say."""
    pattern = str(prepared / "train_*.bin")
    first, second = (PackedDataset(NanogptDataset(pattern, 4), 32) for _ in range(2))

    for name, values in first.gather(np.arange(len(first))).items():
        assert np.array_equal(values, second.gather(np.arange(len(first)))[name])
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != PackedDataset(NanogptDataset(pattern, 4), 33).fingerprint
    assert sorted(first.sample_order(1).order(np.arange(len(first))).tolist()) == list(range(len(first)))
    assert first.seq_len == 32
    with pytest.raises(IndexError, match="sample ids go from 0"):
        first[len(first)]


def test_what_cannot_be_packed_is_refused(write_shards, prepared, tmp_path):
    """No known BOS token, and packs without room for a label."""
    with pytest.raises(DataError, match="bos_token: 50256"):
        PackedDataset(NanogptDataset(write_shards(tmp_path / "x", [50]), 4), 8)
    with pytest.raises(ConfigError, match="at least 2 tokens"):
        PackedDataset(NanogptDataset(str(prepared / "train_*.bin"), 4), 1)


def test_document_mask_marks_the_documents_of_contiguous_samples(prepare_documents, tmp_path):
    """The same samples, with positions and numbers; labels are those of the stream."""
    directory = prepare_documents(tmp_path / "x", {"train": [[1, 2], [3], [4, 5, 6, 7]]})
    pattern = str(directory / "*.bin")

    plain = NanogptDataset(pattern, 3).gather(np.arange(3))
    marked = NanogptDataset(pattern, 3, document_mask=True).gather(np.arange(3))

    assert plain["input_ids"].tolist() == [[256, 1, 2], [256, 3, 256], [4, 5, 6]]
    for name in ("input_ids", "labels"):
        assert np.array_equal(marked[name], plain[name])
    assert marked["position_ids"].tolist() == [[0, 1, 2], [0, 1, 0], [0, 1, 2]]
    assert marked["document_ids"].tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert NanogptDataset(pattern, 3, document_mask=True)[1]["document_ids"].tolist() == [0, 0, 1]


def test_document_mask_without_a_known_bos_token_says_what_to_set(small_shards):
    """Nothing is guessed."""
    with pytest.raises(DataError, match="document_mask needs to know the BOS token"):
        NanogptDataset(small_shards, 4, document_mask=True)
