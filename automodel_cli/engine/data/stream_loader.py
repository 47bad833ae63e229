"""Batches from a dataset that can only be read in order: an iterable of samples, finite or endless.

Every rank reads the whole stream and keeps its block of each step, so that the number of ranks and
of micro-batches changes nothing about which samples make up a step. A stream that offers
`state_dict` and `load_state_dict` goes on where it was; any other is read again from its beginning
up to the sample that comes next: that takes time, and is exact if it gives the same samples again.
"""

from __future__ import annotations

import itertools
import json
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any

from automodel_cli.engine.data.collate import Batch, Collator, DataSection
from automodel_cli.engine.data.loader import MicroBatches, own_places, read_ahead
from automodel_cli.engine.protocols import MapDataset, StatefulStream, in_users_code
from automodel_cli.errors import DataError

Sample = Mapping[str, Any]


def is_stream(dataset: Any) -> bool:
    """Whether a dataset is to be iterated: it has no samples by number, or it is an IterableDataset of torch.

    >>> is_stream(iter([])), is_stream([])
    (True, False)
    """
    # torch's class is found by name: its __getitem__ only raises, and importing torch takes seconds.
    kinds = {f"{base.__module__.partition('.')[0]}.{base.__name__}" for base in type(dataset).__mro__}
    return "torch.IterableDataset" in kinds or (isinstance(dataset, Iterable) and not isinstance(dataset, MapDataset))


class StreamPosition:
    """An iterable with a place in it that can be saved, whether it offers one or its items have to be counted.

    Args:
        source: Iterable more than once.
    """

    def __init__(self, source: Iterable[Any]) -> None:
        self._source = source
        self._is_stateful = isinstance(source, StatefulStream)
        # The streams of `datasets` begin every later pass where a loaded state was, unless they are put back.
        is_sticky = self._is_stateful and type(source).__module__.partition(".")[0] == "datasets"
        self._beginning = source.state_dict() if is_sticky and isinstance(source, StatefulStream) else None
        self._count = 0
        self._to_skip = 0
        self._is_placed = False

    @property
    def needs_reading_again(self) -> bool:
        """Whether going on means reading everything before the place."""
        return not self._is_stateful

    def __iter__(self) -> Iterator[Any]:
        if not self._is_placed and self._beginning is not None and isinstance(self._source, StatefulStream):
            self._source.load_state_dict(self._beginning)
        to_skip, self._to_skip, self._is_placed = self._to_skip, 0, False
        self._count = 0
        for item in self._source:
            self._count += 1
            if self._count > to_skip:
                yield item
        self._count = 0

    def set_epoch(self, epoch: int) -> None:
        """Passes the number of the pass on to the source, if it has `set_epoch`."""
        set_epoch = getattr(self._source, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The place: what the source says, or how many items were read."""
        if isinstance(self._source, StatefulStream):
            return {"source": self._source.state_dict()}
        return {"items": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next pass begins there."""
        if "source" in state and isinstance(self._source, StatefulStream):
            self._source.load_state_dict(state["source"])
            self._is_placed = True
        else:
            self._to_skip = int(state["items"])


class StreamLoader:
    """Reads a stream step by step, over and over.

    Args:
        dataset: Iterable more than once; its `set_epoch`, if any, gets the number of each pass.
        global_batch_size: Samples per optimisation step, over all ranks.
        local_batch_size: Samples per micro-batch.
        dp_rank: This reader's data-parallel rank.
        dp_size: Number of data-parallel ranks.
        num_workers: 0 reads when asked; otherwise one thread reads ahead, since a stream has one end.
        prefetch_factor: Steps that it may be ahead.
        vocab_size: Refuse token ids from here on.
        interleaved: Give the micro-batches of a step to the ranks one by one, instead of a block to each.
        section: What the configuration says of the dataset.
    """

    def __init__(
        self,
        dataset: Iterable[Sample],
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
        self._dataset = StreamPosition(dataset)
        self._name = type(dataset).__name__
        self._global_batch_size = global_batch_size
        self._local_batch_size = local_batch_size
        places = own_places(global_batch_size, local_batch_size, dp_rank, dp_size, interleaved=interleaved)
        self._own_places = places.tolist()
        self._num_workers = num_workers
        self._look_ahead = max(1, num_workers * prefetch_factor)
        self._section = section or DataSection()
        self._collator = Collator(self._name, vocab_size, self._section)
        self._epoch = 0
        self._states: OrderedDict[int, dict[str, Any]] = OrderedDict()

    @property
    def note(self) -> str:
        """What going on from a checkpoint costs, in words; empty where it costs nothing."""
        if not self._dataset.needs_reading_again:
            return ""
        return (
            f"{self._name} has no state_dict and load_state_dict: a resume reads it again from its beginning, "
            "and is exact if it gives the same samples in the same order"
        )

    def state_at(self, samples: int) -> dict[str, Any] | None:
        """What `restore` needs to go on after `samples` samples; None for a place that was not reached lately."""
        return self._states.get(samples)

    def restore(self, samples: int, state: dict[str, Any] | None) -> None:
        """Lets reading that begins at `samples` go on from a saved state."""
        if state is not None:
            self._states[samples] = state

    def iter_steps(self, start_sample: int = 0) -> Generator[MicroBatches, None, None]:
        """Micro-batches of one step after another, endless; as `BatchLoader.iter_steps`."""
        stream = self._samples(start_sample)
        ends = itertools.count(start_sample + self._global_batch_size, self._global_batch_size)
        if self._num_workers == 0:
            return (self._read_step(stream, end) for end in ends)
        return read_ahead(lambda end: self._read_step(stream, end), ends, 1, self._look_ahead)

    def _read_step(self, stream: Iterator[Sample], end: int) -> MicroBatches:
        with in_users_code(lambda: f"while reading a sample of {self._section}"):
            of_step = list(itertools.islice(stream, self._global_batch_size))
        first = end - self._global_batch_size
        state = {"epoch": self._epoch, "dataset": self._dataset.state_dict()}
        # Written out now: the dataset may change the object while the step waits to be trained on.
        self._states[end] = json.loads(json.dumps(state, default=_refuse))
        while len(self._states) > self._look_ahead + 2:
            self._states.popitem(last=False)
        size, places = self._local_batch_size, self._own_places
        micro_batches = (places[begin : begin + size] for begin in range(0, len(places), size))
        return [
            self._collator.stacked([of_step[place] for place in block], [first + place for place in block])
            for block in micro_batches
        ]

    def _samples(self, start_sample: int) -> Iterator[Sample]:
        """The samples from `start_sample` on, over all epochs."""
        saved = self._states.get(start_sample)
        if saved is not None:
            self._dataset.load_state_dict(saved["dataset"])
            self._epoch = int(saved["epoch"])
        # Without a saved place, of a run that began with other software, the samples before are skipped.
        to_skip, is_continued = (start_sample if saved is None else 0), saved is not None
        while True:
            self._dataset.set_epoch(self._epoch)
            is_empty = True
            for sample in self._dataset:
                is_empty = False
                if to_skip > 0:
                    to_skip -= 1
                else:
                    yield sample
            # One that was saved at the end of a pass has nothing left of it.
            if is_empty and not is_continued:
                raise DataError(f"the dataset {self._name} gave no sample; at least 1 is needed")
            is_continued = False
            self._epoch += 1


def stream_batches(
    dataset: Iterable[Sample],
    batch_size: int,
    num_batches: int | None,
    *,
    vocab_size: int | None = None,
    section: DataSection | None = None,
) -> Iterator[Batch]:
    """The first batches of a stream, from its beginning, for a validation.

    Args:
        dataset: Read anew by each call.
        batch_size: Samples per batch; the last may be smaller.
        num_batches: None reads to the end.
        vocab_size: As for `StreamLoader`.
        section: As for `StreamLoader`.
    """
    section = section or DataSection()
    collator = Collator(type(dataset).__name__, vocab_size, section)
    with in_users_code(lambda: f"while reading {section}"):
        samples = iter(dataset)
    for number in itertools.count() if num_batches is None else range(num_batches):
        with in_users_code(lambda: f"while reading a sample of {section}"):
            block = list(itertools.islice(samples, batch_size))
        if not block:
            return
        yield collator.stacked(block, range(number * batch_size, number * batch_size + len(block)))


def _refuse(value: Any) -> Any:
    raise DataError(
        f"the state of the dataset holds a {type(value).__name__}, which a checkpoint cannot keep",
        help="state_dict must give numbers, text, lists and mappings of them only",
    )
