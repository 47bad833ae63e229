"""Megatron's files, packed here byte by byte from the format's description, are read as what they hold."""

from __future__ import annotations

import struct
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automodel_cli.engine.config.aliases import resolved
from automodel_cli.engine.data.megatron_dataset import MegatronPretraining
from automodel_cli.engine.shards.megatron import MegatronFormat
from automodel_cli.errors import ConfigError, DataError

CODES = {1: "B", 4: "i", 5: "q", 8: "H"}


def write_megatron(prefix, documents, code=8, modes=False):
    """An indexed dataset, version 1: documents are lists of sequences."""
    sequences = [sequence for document in documents for sequence in document]
    size = struct.calcsize(CODES[code])
    lengths = [len(sequence) for sequence in sequences]
    pointers = [total * size for total in accumulate(lengths, initial=0)][:-1]
    ends = list(accumulate((len(document) for document in documents), initial=0))
    prefix.with_name(f"{prefix.name}.bin").write_bytes(
        b"".join(struct.pack(f"<{len(sequence)}{CODES[code]}", *sequence) for sequence in sequences)
    )
    prefix.with_name(f"{prefix.name}.idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<Q", 1)
        + struct.pack("<B", code)
        + struct.pack("<QQ", len(lengths), len(ends))
        + struct.pack(f"<{len(lengths)}i", *lengths)
        + struct.pack(f"<{len(pointers)}q", *pointers)
        + struct.pack(f"<{len(ends)}q", *ends)
        + (bytes(len(lengths)) if modes else b"")
    )
    return str(prefix)


def inputs(dataset):
    return dataset.gather(np.arange(len(dataset)))["input_ids"].ravel().tolist()


@settings(max_examples=40, deadline=None)
@given(
    documents=st.lists(
        st.lists(st.lists(st.integers(0, 120), max_size=9), min_size=1, max_size=3), min_size=1, max_size=8
    ),
    seq_length=st.integers(1, 5),
    code=st.sampled_from(sorted(CODES)),
    modes=st.booleans(),
)
def test_samples_are_the_tokens_in_order(tmp_path_factory, documents, seq_length, code, modes):
    """Of every type of token, with several sequences to a document and with the modes of multimodal files."""
    prefix = write_megatron(tmp_path_factory.mktemp("d") / "corpus_v1.5", documents, code, modes)
    tokens = [token for document in documents for sequence in document for token in sequence]
    if len(tokens) <= seq_length:
        with pytest.raises(DataError):
            MegatronPretraining(prefix, seq_length, split="1,0,0")
        return

    dataset = MegatronPretraining(prefix, seq_length, split="1,0,0")
    batch = dataset.gather(np.arange(len(dataset)))

    used = (len(tokens) - 1) // seq_length * seq_length
    assert batch["input_ids"].ravel().tolist() == tokens[:used]
    assert batch["labels"].ravel().tolist() == tokens[1 : used + 1]
    assert batch["input_ids"].dtype == np.int64


def test_splits_take_whole_documents_and_share_them_out(tmp_path):
    """900,50,50 of 20 documents of 5 tokens: 18, 1 and 1, and none in two."""
    prefix = write_megatron(tmp_path / "web", [[[number] * 5] for number in range(20)])

    splits = {name: MegatronPretraining(prefix, 1, splits_to_build=name) for name in ("train", "validation", "test")}

    assert {name: dataset.num_tokens for name, dataset in splits.items()} == {"train": 90, "validation": 5, "test": 5}
    seen = {name: set(inputs(dataset)) for name, dataset in splits.items()}
    assert seen == {"train": set(range(18)), "validation": {18}, "test": {19}}
    assert splits["validation"].locate(0) == (f"{prefix}.bin", 0)


def test_a_mapping_gives_each_split_its_own_files(tmp_path):
    """And `split` is not used."""
    train = write_megatron(tmp_path / "a", [[[1] * 9]])
    validation = write_megatron(tmp_path / "b", [[[2] * 9]])
    paths = {"train": train, "validation": [validation], "test": []}

    assert set(inputs(MegatronPretraining(paths, 4))) == {1}
    assert set(inputs(MegatronPretraining(paths, 4, splits_to_build="validation"))) == {2}
    with pytest.raises(DataError, match="empty list"):
        MegatronPretraining(paths, 4, splits_to_build="test")


def test_a_blend_meets_its_weights(tmp_path):
    """3 of 10 samples are from the first prefix, in any 10 in a row."""
    web = write_megatron(tmp_path / "web", [[[1] * 41]])
    code = write_megatron(tmp_path / "code", [[[2] * 81]], code=4)
    dataset = MegatronPretraining(["30", web, "70", code], 4, split="1,0,0")

    ids = dataset.sample_order(5).order(np.arange(200))

    source = dataset.gather(ids)["input_ids"][:, 0].reshape(20, 10)
    assert ((source == 1).sum(axis=1) == 3).all()
    assert dataset.fingerprint != MegatronPretraining([web, code], 4, split="1,0,0").fingerprint


def test_a_pattern_finds_all_prefixes(tmp_path):
    """By their common beginning, sorted; either ending may be written."""
    for name in ("part_1", "part_0", "other"):
        write_megatron(tmp_path / name, [[[int(name[-1]) if name[-1].isdigit() else 9] * 3]])

    assert inputs(MegatronPretraining(str(tmp_path / "part_*"), 2, split="1,0,0")) == [0, 0, 1, 1]
    assert inputs(MegatronPretraining(tmp_path / "part_1.idx", 2, split="1,0,0")) == [1, 1]


def test_what_prep_writes_is_read_with_its_manifest(prepare_documents, random_documents, tmp_path):
    """The largest id is known, and the tokens are those of the documents, large vocabularies too."""
    documents = random_documents(20)
    tokens = [token for document in documents for token in (256, *document)]
    for vocab_size in (257, 100_000):
        directory = prepare_documents(
            tmp_path / str(vocab_size),
            {"train": documents},
            shard_tokens=10_000,
            form=MegatronFormat(),
            vocab_size=vocab_size,
        )

        dataset = MegatronPretraining(str(directory / "train_*"), 8, split="100,0,0")

        assert inputs(dataset) == tokens[: len(dataset) * 8]
        assert dataset.max_token_id == 256
        assert dataset.manifest.tokenizer.bos_id == 256


def test_validation_may_be_limited(tmp_path):
    """A fixed number of samples, as files written for NeMo AutoModel ask."""
    prefix = write_megatron(tmp_path / "web", [[[1] * 50], [[2] * 50]])

    assert len(MegatronPretraining(prefix, 4, split="1,1,0", splits_to_build="validation", num_val_samples=3)) == 3
    assert len(MegatronPretraining(prefix, 4, split="1,1,0", num_val_samples=3)) == 12


def test_the_guides_name_stands_for_this_class():
    """Where that package is not installed."""
    target = "nemo_automodel.components.datasets.llm.megatron_dataset.MegatronPretraining"

    assert resolved(target) == f"{MegatronPretraining.__module__}.{MegatronPretraining.__name__}"


@pytest.mark.parametrize("split", ["1,2", "a,b,c", "0,0,0", "-1,1,1", "nan,1,1", "", [1, 2], None])
def test_a_split_is_three_shares(tmp_path, split):
    """Nothing else."""
    prefix = write_megatron(tmp_path / "web", [[[1] * 9]])

    with pytest.raises(ConfigError, match="three shares"):
        MegatronPretraining(prefix, 4, split=split)


def test_an_empty_split_is_refused(tmp_path):
    """One document cannot be shared out."""
    prefix = write_megatron(tmp_path / "web", [[[1] * 9]])

    with pytest.raises(DataError, match="the validation split holds no documents"):
        MegatronPretraining(prefix, 4, splits_to_build="validation")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: b"MMIDIDY" + raw[7:], "no Megatron index"),
        (lambda raw: raw[:20], "no Megatron index"),
        (lambda raw: raw[:9] + struct.pack("<Q", 2) + raw[17:], "version 2"),
        (lambda raw: raw[:17] + b"\x07" + raw[18:], "type 7"),
        (lambda raw: raw[:-1], "need"),
        (lambda raw: raw + b"xyz", "need"),
        (lambda raw: raw[:34] + struct.pack("<i", 4) + raw[38:], "sequence 1 begins at byte 10"),
        (lambda raw: raw[:34] + struct.pack("<i", -1) + raw[38:], "negative length"),
        (lambda raw: raw[:-8] + struct.pack("<q", 1), "must ascend from 0"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path, damage, message):
    """Two documents of 5 tokens; each field is checked against the others."""
    prefix = write_megatron(tmp_path / "web", [[[1] * 5], [[2] * 5]])
    index = tmp_path / "web.idx"
    index.write_bytes(damage(index.read_bytes()))

    with pytest.raises(DataError, match=message):
        MegatronPretraining(prefix, 2)


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    """Or of which one is missing."""
    prefix = write_megatron(tmp_path / "web", [[[1] * 5]])
    (tmp_path / "web.bin").write_bytes(b"12345678")
    with pytest.raises(DataError, match=r"has 8 bytes, but web\.idx promises 5 tokens of 2 bytes = 10"):
        MegatronPretraining(prefix, 2)

    (tmp_path / "web.idx").unlink()
    with pytest.raises(DataError, match=r"no \.idx beside"):
        MegatronPretraining(prefix, 2)
    (tmp_path / "web.bin").unlink()
    with pytest.raises(DataError, match="no file matches"):
        MegatronPretraining(prefix, 2)
