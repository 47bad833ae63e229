"""Batches of a run: the order's samples, cut into micro-batches, read ahead by threads.

Step n is made of the samples at positions n * global_batch_size + j. Rank r and micro-batch m
read a contiguous block of j, so neither the number of ranks, nor the size of a micro-batch,
nor the number of loader workers changes which samples make up a step, nor their order. The blocks
of a rank stand beside each other, or are interleaved with those of the others.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from automodel_cli.engine.data.collate import VOCAB_HELP, Batch, Collator, DataSection
from automodel_cli.engine.protocols import BoundsTokens, GatherDataset, LocatesSamples, MapDataset, Order, in_users_code
from automodel_cli.errors import ConfigError, DataError

MicroBatches = list[Batch]
Begin = TypeVar("Begin")
Int64Array = npt.NDArray[np.int64]

_SAMPLES_AHEAD = 4096


class BatchReader:
    """Reads batches by sample number.

    Args:
        dataset: A map-style dataset, with `gather` or without.
        vocab_size: Number of ids of the model; `None` checks no upper bound.
        section: What the configuration says of the dataset.

    Raises:
        DataError: The dataset is not map-style, is empty, or is known to hold ids that the model lacks.
    """

    def __init__(self, dataset: MapDataset, vocab_size: int | None, section: DataSection | None = None) -> None:
        kind = type(dataset).__name__
        if not isinstance(dataset, MapDataset):
            raise DataError(
                f"the dataset {kind} does not offer both __len__ and __getitem__",
                help="see MapDataset in automodel_cli/engine/protocols.py; a dataset without numbers must be iterable",
            )
        if len(dataset) < 1:
            raise DataError(f"the dataset {kind} has no samples; at least 1 is needed")
        if vocab_size is not None and isinstance(dataset, BoundsTokens):
            _check_bound(dataset, vocab_size)
        self._dataset = dataset
        # Asked once: to look for the members of a protocol takes as long as reading a small batch.
        self._gather = dataset.gather if isinstance(dataset, GatherDataset) else None
        self._section = section or DataSection()
        locate = dataset.locate if isinstance(dataset, LocatesSamples) else None
        self._collator = Collator(kind, vocab_size, self._section, locate)

    def read(self, sample_ids: Int64Array) -> Batch:
        """The samples `sample_ids` (B,) as int64 arrays (B, T).

        Raises:
            DataError: As `Collator.stacked` and `Collator.checked`.
        """
        if self._gather is not None:
            with in_users_code(lambda: f"while gathering a batch of {self._section}"):
                gathered = self._gather(sample_ids)
            return self._collator.checked(gathered, sample_ids)
        number = -1
        samples = []
        with in_users_code(lambda: f"while reading sample {number} of {self._section}"):
            for number in sample_ids.tolist():
                samples.append(self._dataset[number])
        return self._collator.stacked(samples, sample_ids)


def _check_bound(dataset: BoundsTokens, vocab_size: int) -> None:
    largest = dataset.max_token_id
    if largest is not None and largest >= vocab_size:
        raise DataError(
            f"the data hold token id {largest:,}, but the model's vocabulary is 0 to {vocab_size - 1:,}",
            help=VOCAB_HELP,
        )


class BatchLoader:
    """Reads a dataset in a given order, forever.

    Args:
        dataset: A map-style dataset; one that offers `gather` is read a batch at a time.
        order: Which sample stands at which position of the run.
        global_batch_size: Samples per optimisation step, over all ranks.
        local_batch_size: Samples per micro-batch.
        dp_rank: This reader's data-parallel rank.
        dp_size: Number of data-parallel ranks.
        num_workers: Threads that read ahead; 0 reads when asked. Threads, because reading is
            copying: numpy releases the interpreter lock and nothing has to be pickled.
        prefetch_factor: Steps that each worker may be ahead.
        vocab_size: Refuse token ids from here on, naming the shard and the offset.
        interleaved: Give the micro-batches of a step to the ranks one by one, instead of a block to each.
        section: What the configuration says of the dataset.

    Raises:
        ConfigError: The sizes do not divide, or a number is out of range.
        DataError: The dataset is not map-style, or is known to hold larger ids than the model has.
    """

    def __init__(
        self,
        dataset: MapDataset,
        order: Order,
        *,
        global_batch_size: int,
        local_batch_size: int,
        dp_rank: int = 0,
        dp_size: int = 1,
        num_workers: int = 0,
        prefetch_factor: int = 2,
        vocab_size: int | None = None,
        interleaved: bool = False,
        section: DataSection | None = None,
    ) -> None:
        _check_sizes(global_batch_size, local_batch_size, dp_rank, dp_size)
        _check_workers(num_workers, prefetch_factor)
        self._reader = BatchReader(dataset, vocab_size, section)
        self._order = order
        self._global_batch_size = global_batch_size
        self._local_batch_size = local_batch_size
        self._rank_samples = global_batch_size // dp_size
        self._own_places = own_places(global_batch_size, local_batch_size, dp_rank, dp_size, interleaved=interleaved)
        self._num_workers = num_workers
        self._prefetch_factor = prefetch_factor

    @property
    def note(self) -> str:
        """What a user should know before the first step; empty where there is nothing."""
        if self._order.num_samples >= self._global_batch_size:
            return ""
        return (
            f"the data set has {self._order.num_samples:,} samples, but a step takes {self._global_batch_size:,} "
            "(step_scheduler.global_batch_size), so that a step takes some of them more than once"
        )

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches per optimisation step on this rank."""
        return self._rank_samples // self._local_batch_size

    def iter_steps(self, start_sample: int = 0) -> Generator[MicroBatches, None, None]:
        """Micro-batches of one step after another, endless.

        Args:
            start_sample: Samples that the run has consumed already, over all ranks.

        Yields:
            `num_micro_batches` dictionaries of arrays (local_batch_size, T). An exception of
            the dataset appears at the step that it belongs to. Closing the generator ends the
            reading threads.
        """
        steps = self._steps(start_sample)
        if self._num_workers == 0:
            return (self._read_step(sample_ids) for sample_ids in steps)
        return read_ahead(self._read_step, steps, self._num_workers, self._num_workers * self._prefetch_factor)

    def _steps(self, start_sample: int) -> Iterator[Int64Array]:
        """The ids of this rank's samples, one step after another, each of shape (rank_samples,).

        Computed for many steps at once: for a few samples the order takes four times as long as reading them.
        """
        # Not beyond an epoch: each further one of a small data set would cost as much again.
        num_steps = max(1, min(_SAMPLES_AHEAD, self._order.num_samples) // self._rank_samples)
        steps = np.arange(num_steps, dtype=np.int64)[:, None] * self._global_batch_size
        places = steps + self._own_places
        for begin in itertools.count(start_sample, num_steps * self._global_batch_size):
            yield from self._order.order((places + begin).ravel()).reshape(places.shape)

    def _read_step(self, sample_ids: Int64Array) -> MicroBatches:
        return [self._reader.read(block) for block in sample_ids.reshape(-1, self._local_batch_size)]


def own_places(
    global_batch_size: int, local_batch_size: int, dp_rank: int, dp_size: int, *, interleaved: bool
) -> Int64Array:
    """Which samples of a step a rank reads, one micro-batch after another.

    >>> own_places(8, 2, 1, 2, interleaved=False).tolist(), own_places(8, 2, 1, 2, interleaved=True).tolist()
    ([4, 5, 6, 7], [2, 3, 6, 7])
    """
    places: Int64Array = np.arange(global_batch_size, dtype=np.int64)
    blocks = places.reshape(-1, dp_size, local_batch_size) if interleaved else places.reshape(dp_size, -1).T
    return blocks[:, dp_rank].ravel()


def read_ahead(
    read_step: Callable[[Begin], MicroBatches], steps: Iterator[Begin], num_workers: int, look_ahead: int
) -> Generator[MicroBatches, None, None]:
    """What `read_step` makes of each begin, in order, made by threads up to `look_ahead` of them ahead."""
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="batch-loader")
    pending: deque[Future[MicroBatches]] = deque()
    is_cut_short = True
    try:
        while True:
            while len(pending) < look_ahead:
                pending.append(pool.submit(read_step, next(steps)))
            yield pending.popleft().result()
    except (GeneratorExit, Exception):
        is_cut_short = False
        raise
    finally:
        # If interrupted while waiting, don't wait for the workers at shutdown.
        pool.shutdown(wait=not is_cut_short, cancel_futures=True)


def eval_batches(
    dataset: MapDataset,
    batch_size: int,
    num_batches: int | None = None,
    *,
    vocab_size: int | None = None,
    section: DataSection | None = None,
) -> Iterator[Batch]:
    """The fixed validation set: the first `num_batches` batches in order, the same every time.

    Args:
        dataset: As for `BatchLoader`.
        batch_size: Samples per batch; the last batch of the dataset may be smaller and is kept.
        num_batches: `None` reads the whole dataset once.
        vocab_size: As for `BatchLoader`.
        section: As for `BatchLoader`.
    """
    if batch_size < 1:
        raise ConfigError(f"the validation batch size is {batch_size}, but must be at least 1")
    reader = BatchReader(dataset, vocab_size, section)
    num_samples = len(dataset)
    if num_batches is not None:
        num_samples = min(num_samples, num_batches * batch_size)
    for begin in range(0, num_samples, batch_size):
        yield reader.read(np.arange(begin, min(begin + batch_size, num_samples), dtype=np.int64))


def _check_sizes(global_batch_size: int, local_batch_size: int, dp_rank: int, dp_size: int) -> None:
    if local_batch_size < 1 or dp_size < 1:
        raise ConfigError(f"local_batch_size is {local_batch_size} and dp_size {dp_size}, but both must be at least 1")
    if not 0 <= dp_rank < dp_size:
        raise ConfigError(f"dp_rank is {dp_rank}, but must be in 0 to {dp_size - 1}")
    together = local_batch_size * dp_size
    if global_batch_size < 1 or global_batch_size % together:
        below = global_batch_size // together * together
        working = f"{below} or {below + together}" if below > 0 else f"{together}"
        raise ConfigError(
            f"step_scheduler.global_batch_size is {global_batch_size}, but it must be a multiple of "
            f"local_batch_size x data-parallel ranks = {local_batch_size} x {dp_size} = {together}",
            help=f"{working} would work",
        )


def _check_workers(num_workers: int, prefetch_factor: int) -> None:
    if num_workers < 0:
        raise ConfigError(f"dataloader.num_workers is {num_workers}, but must be at least 0")
    if num_workers > 0 and prefetch_factor < 1:
        raise ConfigError(f"dataloader.prefetch_factor is {prefetch_factor}, but must be at least 1")
