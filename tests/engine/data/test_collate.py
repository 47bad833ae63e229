"""Samples of a user's dataset are held to what MapDataset asks for, and the message has the numbers."""

from __future__ import annotations

from collections import UserDict

import numpy as np
import pytest
import torch

from automodel_cli.engine.data.collate import DataSection
from automodel_cli.engine.data.loader import BatchReader
from automodel_cli.engine.data.stream_loader import StreamLoader
from automodel_cli.errors import DataError

SECTION = DataSection("dataset", "own.yaml:12:3", positions=32)
IDS = np.random.default_rng(0).integers(0, 257, (40, 17))


def sample(ids):
    return {"input_ids": ids[:-1], "labels": ids[1:]}


class Own:
    """Random tokens, with one sample that is what the test wants it to be."""

    def __init__(self, odd=None, at=17, samples=sample):
        self.odd, self.at, self.samples = odd, at, samples

    def __len__(self):
        return len(IDS)

    def __getitem__(self, index):
        if index == self.at and self.odd is not None:
            return self.odd() if callable(self.odd) else self.odd
        return self.samples(IDS[index])


def copy(ids):
    return {"input_ids": ids[:-1], "labels": ids[:-1]}


def read(dataset, numbers=(3, 17), section=SECTION, vocab_size=257):
    return BatchReader(dataset, vocab_size, section).read(np.array(numbers))


BROKEN = {
    "a tuple": ((IDS[17, :-1], IDS[17, 1:]), "sample 17 of Own is a tuple of 2, not a mapping", "return {'input_ids'"),
    "text": ("once upon a time", "sample 17 of Own is a str, not a mapping", None),
    "nothing": (lambda: None, "sample 17 of Own is a NoneType, not a mapping", None),
    "another length": (sample(IDS[17, :9]), "sample 3 have 16 tokens, those of sample 17 8 tokens", "one length"),
    "no labels": ({"input_ids": IDS[17, 1:]}, "sample 17 of Own has no labels, but sample 3 has", None),
    "an id too large": (
        sample(np.r_[IDS[17, :5], 1032, IDS[17, 6:]]),
        "sample 17 holds id 1032, the vocabulary ends at 256 (input_ids[5]",
        "vocab_size",
    ),
    "another mask": (
        {"input_ids": IDS[17, 1:], "labels": [-1] * 16},
        "sample 17 holds id -1",
        "not trained on is -100",
    ),
    "no array": (
        {"input_ids": IDS[17, 1:], "labels": torch.zeros(16, device="meta")},
        "labels of sample 17 of Own cannot become an array",
        "tensors on the CPU",
    ),
}


@pytest.mark.parametrize(("odd", "message", "help_"), BROKEN.values(), ids=BROKEN)
def test_one_sample_that_breaks_the_contract_is_named(odd, message, help_):
    """By its number, with what it is and what it should be, at the line of the dataset."""
    with pytest.raises(DataError) as caught:
        read(Own(odd))

    assert message in caught.value.message
    assert caught.value.where == "own.yaml:12:3"
    assert help_ is None or help_ in caught.value.help


ALL_BROKEN = {
    "no labels": (
        lambda ids: {"input_ids": ids},
        "has the keys ['input_ids'], but labels is missing",
        "shift_labels: true",
    ),
    "floats": (
        lambda ids: {**sample(ids), "labels": ids[1:] / 1},
        "labels of Own are float64, but must be whole numbers",
        None,
    ),
    "words": (lambda ids: {"input_ids": ["a"] * 16, "labels": ids[1:]}, "input_ids of Own are no numbers", None),
    "a batch of one": (
        lambda ids: {k: v[None] for k, v in sample(ids).items()},
        "have the shape (1, 16), not (T,)",
        "input_ids[0]",
    ),
    "a label missing": (
        lambda ids: {**sample(ids), "labels": ids[2:]},
        "input_ids are (2, 16), labels (2, 15)",
        "-100",
    ),
    "no token": (lambda ids: {"input_ids": ids[:0], "labels": ids[:0]}, "sample 3 is empty", None),
    "too long": (
        lambda ids: sample(np.tile(ids, 3)),
        "samples have 50 tokens, but the model has 32 positions",
        "up to 32",
    ),
    "copies": (copy, "all 32 labels of a batch equal the inputs at their own places", "shift_labels: true"),
}


@pytest.mark.parametrize(("samples", "message", "help_"), ALL_BROKEN.values(), ids=ALL_BROKEN)
def test_samples_that_all_break_the_contract_are_described(samples, message, help_):
    """With the shapes and types that were found, and what would work."""
    with pytest.raises(DataError) as caught:
        read(Own(samples=samples))

    assert message in caught.value.message
    assert help_ is None or help_ in caught.value.help


@pytest.mark.parametrize(
    "samples",
    [
        sample,
        lambda ids: {name: torch.tensor(values) for name, values in sample(ids).items()},
        lambda ids: {name: values.astype(np.uint16) for name, values in sample(ids).items()},
        lambda ids: UserDict({name: values.tolist() for name, values in sample(ids).items()}),
        lambda ids: {**sample(ids), "text": "beside the point", "score": 0.5, "attention_mask": [1.0] * 16},
    ],
    ids=["int64", "tensors", "uint16", "lists in a mapping", "more keys"],
)
def test_what_the_contract_allows_gives_the_same_batch(samples):
    """Arrays, tensors and lists of any integers; keys that no model takes are left out."""
    batch = read(Own(samples=samples))

    assert {name: (values.dtype, values.tolist()) for name, values in batch.items()} == {
        "input_ids": (np.int64, IDS[[3, 17], :-1].tolist()),
        "labels": (np.int64, IDS[[3, 17], 1:].tolist()),
    }


def test_equal_tokens_are_no_copies():
    """A constant sequence is its own shift: nothing tells, and nothing is refused."""
    batch = read(Own(samples=lambda ids: {"input_ids": [5] * 16, "labels": [5] * 16}))

    assert batch["labels"].tolist() == [[5] * 16] * 2


def test_copies_behind_a_batch_that_cannot_tell_are_found():
    """The judgement waits for the first batch that can."""
    reader = BatchReader(Own(lambda: {"input_ids": [5] * 16, "labels": [5] * 16}, samples=copy), 257, SECTION)
    reader.read(np.array([17]))

    with pytest.raises(DataError, match="all 16 labels of a batch equal the inputs"):
        reader.read(np.array([3]))


def test_shift_labels_makes_copies_the_labels_of_the_next_token():
    """The last place of every sample has none; and labels that are shifted already are refused."""
    shifts = DataSection("dataset", "own.yaml:12:3", shift_labels=True)

    batch = read(Own(samples=copy), section=shifts)

    assert batch["labels"].tolist() == [[*IDS[number, 1:-1].tolist(), -100] for number in (3, 17)]
    with pytest.raises(DataError, match=r"are the token after their input already.*") as caught:
        read(Own(samples=sample), section=shifts)
    assert caught.value.help == "leave shift_labels out"


def test_negative_ids_are_found_without_a_known_vocabulary():
    """A model that does not state its size still cannot take them."""
    with pytest.raises(DataError, match=r"sample 17 holds id -5 \(input_ids\[0\]; ids are 0 and more\)"):
        read(Own({"input_ids": [-5] * 16, "labels": [1] * 16}), vocab_size=None)


def raises():
    raise KeyError("my own")


def leaves():
    raise SystemExit(0)


def test_an_exception_of_the_dataset_keeps_its_type_and_gets_one_note():
    """The note names the sample, the key and the line; the traceback is the user's."""
    with pytest.raises(KeyError, match="my own") as caught:
        read(Own(raises))

    assert caught.value.__notes__ == ["while reading sample 17 of `dataset` from own.yaml:12:3"]
    assert caught.traceback[-1].name == "raises"


def test_a_dataset_cannot_end_the_run_as_a_success():
    """`sys.exit(0)` is an error there."""
    with pytest.raises(RuntimeError, match=r"sys\.exit\(0\)") as caught:
        read(Own(leaves))

    assert caught.value.__notes__ == ["while reading sample 17 of `dataset` from own.yaml:12:3"]


class Stream:
    def __init__(self, make):
        self.make = make

    def __iter__(self):
        return map(self.make, IDS)


def test_a_stream_is_held_to_the_same_contract():
    """Samples are numbered from the beginning of the run; labels are shifted, judged and checked alike."""

    def first(make, **options):
        section = DataSection("dataset", "own.yaml:12:3", **options)
        loader = StreamLoader(
            Stream(make), global_batch_size=4, local_batch_size=2, dp_rank=1, dp_size=2, vocab_size=200, section=section
        )
        return next(loader.iter_steps())

    with pytest.raises(DataError, match=r"sample [23] holds id 2\d\d, the vocabulary ends at 199"):
        first(sample)
    with pytest.raises(DataError, match="equal the inputs at their own places"):
        first(lambda ids: copy(ids % 200))
    shifted = first(lambda ids: copy(ids % 200), shift_labels=True)[0]["labels"]
    assert shifted.tolist() == [[*(IDS[number, 1:-1] % 200).tolist(), -100] for number in (2, 3)]
