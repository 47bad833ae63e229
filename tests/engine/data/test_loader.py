"""The stream of batches depends on the order alone: not on ranks, micro-batches or workers."""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automodel_cli.engine.data.loader import BatchLoader, eval_batches, own_places
from automodel_cli.engine.data.nanogpt_dataset import NanogptDataset
from automodel_cli.engine.data.order import SampleOrder
from automodel_cli.errors import ConfigError, DataError

GLOBAL = 12


class Numbers:
    """A user's dataset: no `gather`, lists of Python integers; sample i holds only i."""

    def __init__(self, num_samples, seq_len=3, bad=None):
        self.num_samples, self.seq_len, self.bad = num_samples, seq_len, bad

    def __len__(self):
        return self.num_samples

    def __getitem__(self, index):
        if index == self.bad:
            raise RuntimeError(f"sample {index} is broken")
        return {"input_ids": [index] * self.seq_len, "labels": [-100] + [index] * (self.seq_len - 1)}


def read_steps(dataset, *, local, dp_size=1, workers=0, num_steps=4, start=0, seed=5):
    """The sample stream of all ranks, step by step: `input_ids` of every step, in rank and micro-batch order."""
    order = SampleOrder(len(dataset), seed, "data")
    streams = []
    for rank in range(dp_size):
        loader = BatchLoader(
            dataset,
            order,
            global_batch_size=GLOBAL,
            local_batch_size=local,
            dp_rank=rank,
            dp_size=dp_size,
            num_workers=workers,
        )
        with closing(loader.iter_steps(start)) as steps:
            streams.append(list(itertools.islice(steps, num_steps)))
    return [
        np.concatenate([batch["input_ids"] for rank in streams for batch in rank[step]]).tolist()
        for step in range(num_steps)
    ]


LAYOUTS = st.sampled_from(
    [(local, dp) for dp in (1, 2, 3, 4) for local in range(1, GLOBAL + 1) if GLOBAL % (local * dp) == 0]
)


@settings(max_examples=40, deadline=None)
@given(layout=LAYOUTS, workers=st.integers(0, 3))
def test_a_step_has_the_same_samples_for_any_ranks_micro_batches_and_workers(small_shards, layout, workers):
    """Ranks joined in order give the very stream of one process that reads whole batches."""
    dataset = NanogptDataset(small_shards, 4)
    local, dp_size = layout

    assert read_steps(dataset, local=local, dp_size=dp_size, workers=workers) == read_steps(dataset, local=GLOBAL)


@settings(max_examples=25, deadline=None)
@given(before=LAYOUTS, after=LAYOUTS, stop=st.integers(0, 5), workers=st.integers(0, 2))
def test_a_run_resumes_at_any_step_on_any_layout(small_shards, before, after, stop, workers):
    """The stream after the stop is what it would have been, from one integer: the samples consumed."""
    dataset = NanogptDataset(small_shards, 4)
    whole = read_steps(dataset, local=4, num_steps=6)

    first = read_steps(dataset, local=before[0], dp_size=before[1], num_steps=stop, workers=workers)
    second = read_steps(
        dataset, local=after[0], dp_size=after[1], num_steps=6 - stop, start=stop * GLOBAL, workers=workers
    )

    assert first + second == whole


@pytest.mark.parametrize("dp_size", [1, 2, 3, 4])
def test_every_token_is_read_once_per_epoch_over_all_ranks(small_shards, dp_size):
    """19 epochs of 12-sample steps over 19 samples: each sample is consumed exactly 12 times."""
    dataset = NanogptDataset(small_shards, 4)

    steps = read_steps(dataset, local=1, dp_size=dp_size, num_steps=19)

    read = sorted(tuple(row) for step in steps for row in step)
    assert read == sorted(tuple(row) for row in dataset.gather(np.arange(19))["input_ids"].tolist() * 12)


def test_a_plain_dataset_is_read_as_well(small_shards):
    """No `gather`, lists instead of arrays, masked labels: stacked to int64, with equal streams."""
    dataset = Numbers(19)

    loader = BatchLoader(
        dataset, SampleOrder(19, 1, "n", False), global_batch_size=4, local_batch_size=2, vocab_size=19
    )
    first = next(loader.iter_steps())

    assert [batch["input_ids"].tolist() for batch in first] == [[[0] * 3, [1] * 3], [[2] * 3, [3] * 3]]
    assert first[0]["labels"].tolist() == [[-100, 0, 0], [-100, 1, 1]]
    assert first[0]["labels"].dtype == np.int64
    assert loader.num_micro_batches == 2
    assert read_steps(dataset, local=3, dp_size=2, workers=2) == read_steps(dataset, local=12)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_exception_of_the_dataset_arrives_at_its_step(workers):
    """The steps before it come through, and its type and message are the user's own."""
    loader = BatchLoader(
        Numbers(40, bad=9), SampleOrder(40, 0, "n", False), global_batch_size=4, local_batch_size=4, num_workers=workers
    )
    with closing(loader.iter_steps()) as steps:
        arrived = [next(steps)[0]["input_ids"][0, 0] for _ in range(2)]

        with pytest.raises(RuntimeError, match="sample 9 is broken"):
            next(steps)

    assert arrived == [0, 4]


def test_workers_end_when_the_stream_is_closed():
    """No thread outlives the training loop."""
    loader = BatchLoader(Numbers(9), SampleOrder(9, 0, "n"), global_batch_size=3, local_batch_size=3, num_workers=3)
    steps = loader.iter_steps()
    next(steps)
    assert any(thread.name.startswith("batch-loader") for thread in threading.enumerate())

    steps.close()

    assert not any(thread.name.startswith("batch-loader") for thread in threading.enumerate())


@pytest.mark.parametrize(("workers", "factor"), [(1, 1), (2, 3)])
def test_reading_ahead_is_bounded(workers, factor):
    """Never more than the look-ahead beyond what was consumed, however fast the reader is."""
    read = set()

    class Watched(Numbers):
        def __getitem__(self, index):
            read.add(index)
            return super().__getitem__(index)

    loader = BatchLoader(
        Watched(1000),
        SampleOrder(1000, 0, "n", False),
        global_batch_size=1,
        local_batch_size=1,
        num_workers=workers,
        prefetch_factor=factor,
    )
    with closing(loader.iter_steps()) as steps:
        for _ in range(5):
            next(steps)
        # Idle workers take a step too many at once, if there is one; closing would cancel it.
        time.sleep(0.05)

    # When step 4 is handed out it is itself the first of the steps in work.
    assert max(read) < 4 + workers * factor


@pytest.mark.parametrize("workers", [0, 2])
def test_a_token_outside_the_vocabulary_names_its_shard_and_offset(write_shards, tmp_path, workers):
    """The id 97 first stands at token 97 of the only shard."""
    dataset = NanogptDataset(write_shards(tmp_path, [200], modulus=200), 10, shuffle=False)
    loader = BatchLoader(
        dataset, dataset.sample_order(0), global_batch_size=4, local_batch_size=2, num_workers=workers, vocab_size=97
    )

    with pytest.raises(DataError, match=r"s0_000000\.bin, token 97: token id 97 is outside .* 0 to 96"):
        list(itertools.islice(loader.iter_steps(), 5))


def test_a_label_outside_the_vocabulary_is_found_too(write_shards, tmp_path):
    """The last look-ahead token of a shard is a label only: id 100 at token 100."""
    dataset = NanogptDataset(write_shards(tmp_path, [101], modulus=200), 10, shuffle=False)

    with pytest.raises(DataError, match="token 100: token id 100"):
        list(eval_batches(dataset, 4, vocab_size=100))


def test_data_known_to_be_beyond_the_vocabulary_are_refused_before_the_first_step(tiny_data):
    """The manifest says 256: no need to wait for the first such token."""
    dataset = NanogptDataset(str(tiny_data / "train_*.bin"), 16)

    with pytest.raises(DataError, match=r"token id 256, but .* 0 to 255"):
        BatchLoader(dataset, dataset.sample_order(0), global_batch_size=4, local_batch_size=2, vocab_size=256)


def test_a_negative_input_is_refused_but_a_masked_label_is_not():
    """-100 masks a label; as an input it would read the embedding from its end."""

    class Negative(Numbers):
        def __getitem__(self, index):
            return {"input_ids": [1, -100, 1], "labels": [-100, -100, 1]}

    with pytest.raises(DataError, match=r"sample 0 holds id -100, .*input_ids\[1\]"):
        next(eval_batches(Negative(3), 2, vocab_size=5))


@pytest.mark.parametrize(
    ("global_batch", "local", "dp_size", "works"),
    [(100, 4, 8, "96 or 128"), (3, 4, 1, "4 would work"), (0, 2, 1, "2 would work"), (-8, 2, 2, "4 would work")],
)
def test_batch_sizes_that_do_not_divide_are_refused_with_sizes_that_do(global_batch, local, dp_size, works):
    """The message multiplies out the rule."""
    with pytest.raises(ConfigError, match=works) as caught:
        BatchLoader(
            Numbers(9), SampleOrder(9, 0, "n"), global_batch_size=global_batch, local_batch_size=local, dp_size=dp_size
        )

    assert f"{local} x {dp_size} = {local * dp_size}" in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [{"local_batch_size": 0}, {"dp_rank": 2, "dp_size": 2}, {"dp_rank": -1}, {"num_workers": -1}, {"dp_size": 0}],
)
def test_numbers_out_of_range_are_refused(options):
    """Each would otherwise read wrong samples or none."""
    arguments = {"global_batch_size": 4, "local_batch_size": 2, **options}
    with pytest.raises(ConfigError, match=r"must be"):
        BatchLoader(Numbers(9), SampleOrder(9, 0, "n"), **arguments)


def test_a_dataset_that_is_not_map_style_is_refused():
    """A generator has no length and no samples by number."""
    with pytest.raises(DataError, match="generator does not offer"):
        BatchLoader((n for n in range(3)), SampleOrder(3, 0, "n"), global_batch_size=1, local_batch_size=1)


def test_samples_that_cannot_be_stacked_are_refused():
    """Unequal lengths and missing keys are named as the user's own."""

    class Ragged(Numbers):
        def __getitem__(self, index):
            return {"input_ids": [0] * (1 + index), "labels": [0] * (1 + index)}

    class Unlabelled(Numbers):
        def __getitem__(self, index):
            return {"input_ids": [0]}

    with pytest.raises(DataError, match=r"Ragged cannot be stacked .* sample 0 have 1 tokens, those of sample 1 2 "):
        list(eval_batches(Ragged(3), 2))
    with pytest.raises(DataError, match=r"Unlabelled .* labels is missing"):
        list(eval_batches(Unlabelled(3), 2))


@pytest.mark.parametrize(("num_batches", "expected"), [(None, [3, 3, 1]), (2, [3, 3]), (9, [3, 3, 1]), (0, [])])
def test_validation_is_a_fixed_set_that_ends(num_batches, expected):
    """The first batches in order, the last one partial, the same at every call."""
    first = list(eval_batches(Numbers(7), 3, num_batches))

    assert [len(batch["input_ids"]) for batch in first] == expected
    assert [row[0] for batch in first for row in batch["input_ids"]] == list(range(sum(expected)))


@pytest.mark.parametrize("dp_size", [1, 2, 4])
def test_interleaved_ranks_read_the_micro_batches_of_a_step_in_turn(dp_size):
    """Micro-batch m of rank r is number m x ranks + r of the step, whatever the number of ranks."""
    numbered = [own_places(24, 3, rank, dp_size, interleaved=True).reshape(-1, 3).tolist() for rank in range(dp_size)]

    in_turn = [place for turn in zip(*numbered, strict=True) for block in turn for place in block]

    assert in_turn == list(range(24))
