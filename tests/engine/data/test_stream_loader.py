"""Streams: the same samples for every layout, places that survive, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from automodel_cli.engine.data.stream_loader import StreamLoader, StreamPosition, is_stream, stream_batches
from automodel_cli.errors import DataError


class Counting:
    """A finite stream of numbered samples that can only be read."""

    def __init__(self, length=10):
        self.length = length
        self.num_read = 0
        self.epochs = []

    def __iter__(self):
        for number in range(self.length):
            self.num_read += 1
            yield {"input_ids": [number, number], "labels": [number, -100]}

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


class Placed(Counting):
    """The same with a place that can be saved."""

    def __init__(self, length=10):
        super().__init__(length)
        self.place = 0

    def __iter__(self):
        while self.place < self.length:
            number = self.place
            self.place += 1
            self.num_read += 1
            yield {"input_ids": [number, number], "labels": [number, -100]}
        self.place = 0

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


def loader_of(dataset, *, micro=2, rank=0, ranks=1, workers=0, vocab=None):
    return StreamLoader(
        dataset,
        global_batch_size=4,
        local_batch_size=micro,
        dp_rank=rank,
        dp_size=ranks,
        num_workers=workers,
        vocab_size=vocab,
    )


def numbers(micro_batches):
    return [int(row[0]) for batch in micro_batches for row in batch["input_ids"]]


def take(loader, count, start=0):
    steps = loader.iter_steps(start)
    try:
        return [numbers(next(steps)) for _ in range(count)]
    finally:
        steps.close()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [Counting, Placed])
def test_a_step_is_the_next_samples_over_and_over(kind, workers):
    """10 samples, 4 a step: the third step goes on with the next pass, whose number the dataset is told."""
    dataset = kind()

    assert take(loader_of(dataset, workers=workers), 5) == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 0, 1],
        [2, 3, 4, 5],
        [6, 7, 8, 9],
    ]
    assert dataset.epochs[:2] == [0, 1]


@given(st.integers(1, 12), st.sampled_from([(1, 4), (2, 2), (4, 1), (1, 1), (2, 1)]), st.integers(1, 6))
def test_neither_ranks_nor_micro_batches_change_what_a_step_is_made_of(length, layout, count):
    """The blocks of all ranks, side by side, are the step of one rank."""
    ranks, micro = layout
    whole = take(loader_of(Counting(length), micro=4), count)

    parts = [take(loader_of(Counting(length), micro=micro, rank=rank, ranks=ranks), count) for rank in range(ranks)]

    assert [sum((part[step] for part in parts), []) for step in range(count)] == whole  # noqa: RUF017


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", [Counting, Placed])
@given(length=st.integers(1, 12), before=st.integers(0, 7))
def test_a_stream_goes_on_after_what_was_trained_on(kind, workers, length, before):
    """Also at the end of a pass, and however far the reading was ahead; the state goes through JSON."""
    whole = take(loader_of(kind(length)), before + 3)
    first = loader_of(kind(length), workers=workers)
    take(first, before) if before else None
    state = json.loads(json.dumps(first.state_at(4 * before)))

    second = loader_of(kind(length), workers=workers)
    second.restore(4 * before, state)

    assert take(second, 3, start=4 * before) == whole[before:]


def test_a_saved_place_spares_reading_again_and_a_stream_without_one_says_so():
    """What is lost is said, and what is not is not read."""
    placed, counted = Placed(1000), Counting(1000)
    loader = loader_of(placed)
    loader.restore(800, {"epoch": 0, "dataset": {"source": {"place": 800}}})

    assert take(loader, 1, start=800) == take(loader_of(counted), 1, start=800) == [[800, 801, 802, 803]]

    assert (placed.num_read, counted.num_read) == (4, 804)
    assert loader.note == ""
    assert "Counting has no state_dict" in loader_of(counted).note


def test_torch_s_iterable_dataset_is_a_stream_even_with_a_length():
    """It has a __getitem__ that only raises."""

    class Sized(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield {"input_ids": torch.arange(3), "labels": torch.arange(3)}

        def __len__(self):
            return 1

    assert is_stream(Sized())
    assert take(loader_of(Sized(), vocab=3), 1) == [[0, 0, 0, 0]]


def test_what_cannot_be_trained_on_is_refused():
    """An empty stream, an id outside the vocabulary, and a state that no checkpoint could hold."""

    class Odd(Placed):
        def state_dict(self):
            return {"place": object()}

    with pytest.raises(DataError, match="Counting gave no sample"):
        take(loader_of(Counting(0)), 1)
    with pytest.raises(DataError, match=r"sample 3 holds id 3, the vocabulary ends at 2"):
        take(loader_of(Counting(), vocab=3), 1)
    with pytest.raises(DataError, match="holds a object, which a checkpoint cannot keep"):
        take(loader_of(Odd()), 1)


def test_a_validation_reads_the_same_first_batches_every_time():
    """The last may be smaller; without a number, to the end."""
    dataset = Counting(5)

    assert [len(batch["input_ids"]) for batch in stream_batches(dataset, 2, None)] == [2, 2, 1]
    first, again = (list(stream_batches(dataset, 2, 2)) for _ in range(2))
    assert all(np.array_equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, again, strict=True))


def test_a_stream_of_datasets_begins_its_later_passes_at_the_beginning(tmp_path, monkeypatch):
    """After a resume too: by itself it would begin each of them where it was resumed."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"n": n}) + "\n" for n in range(5)))

    def stream():
        files = str(tmp_path / "a.jsonl")
        return datasets.load_dataset(
            "json", data_files=files, split="train", streaming=True, cache_dir=str(tmp_path / "cache")
        )

    first = StreamPosition(stream())
    begun = iter(first)
    assert [next(begun)["n"] for _ in range(3)] == [0, 1, 2]
    second = StreamPosition(stream())
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))

    assert [row["n"] for row in second] == [3, 4]
    assert [row["n"] for row in second] == [0, 1, 2, 3, 4]
