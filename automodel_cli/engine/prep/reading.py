"""The first stage of preparation: from a source's batches to units of work, shuffled if asked.

A unit is what is committed as a whole. Without shuffling it is one batch of the source. With it,
it is a block of `shuffle_buffer` consecutive documents in a random order that depends on the seed and the
number of the block alone; so shuffling starts again in the middle of a corpus as exactly as
reading does, without a saved buffer, and a document moves by less than one block.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from automodel_cli.engine.prep.left_out import FirstSkipped
from automodel_cli.engine.prep.source import DocumentBatch

if TYPE_CHECKING:
    import pyarrow as pa

    from automodel_cli.engine.prep.corpus.corpus import Corpus


@dataclass(frozen=True)
class Position:
    """A place between two documents of a source.

    Attributes:
        cursor: The source is read from here; `None` is its beginning.
        skip: Documents behind the cursor that were used already.
        num_units: Units before this place.
    """

    cursor: str | None = None
    skip: int = 0
    num_units: int = 0


@dataclass(frozen=True)
class Unit:
    """Documents that are written and committed together.

    Attributes:
        texts: Strings without nulls.
        source_bytes: Bytes of the source, of every batch that ends here.
        skipped: Bad documents of those batches, by reason.
        end: The place behind the unit.
        place: The same for the user, such as a file name.
        first_skipped: The first bad document of each reason, as in `DocumentBatch`.
    """

    texts: pa.Array
    source_bytes: int
    skipped: Mapping[str, int]
    end: Position
    place: str
    first_skipped: FirstSkipped = field(default_factory=dict)


def read_units(source: Corpus, start: Position, seed: int, shuffle_buffer: int) -> Iterator[Unit]:
    """The documents behind `start`, in order or shuffled.

    Args:
        source: Where the documents come from.
        start: Where an earlier run ended.
        seed: Seed of the shuffling.
        shuffle_buffer: Documents in a block; below 2 nothing is shuffled.
    """
    if shuffle_buffer < 2:
        for number, batch in enumerate(source.batches(start.cursor), start=start.num_units + 1):
            end = Position(batch.cursor, 0, number)
            yield Unit(batch.texts, batch.source_bytes, batch.skipped, end, batch.place, batch.first_skipped)
    else:
        yield from _blocks(source, start, seed, shuffle_buffer)


def block_order(num_documents: int, seed: int, block: int) -> npt.NDArray[np.int64]:
    """A permutation of the documents of one block, the same for every version of numpy."""
    # Only the raw numbers of a bit generator are promised to stay the same in all versions.
    numbers = np.random.Philox(key=np.array([seed, block], dtype=np.uint64)).random_raw(num_documents)
    return np.argsort(numbers, kind="stable")


@dataclass
class _Waiting:
    """A batch with documents that are in no block yet."""

    before: str | None
    batch: DocumentBatch
    used: int


def _blocks(source: Corpus, start: Position, seed: int, size: int) -> Iterator[Unit]:
    waiting: deque[_Waiting] = deque()
    before, skip, block = start.cursor, start.skip, start.num_units
    num_waiting = 0
    for batch in source.batches(start.cursor):
        waiting.append(_Waiting(before, batch, skip))
        num_waiting += len(batch.texts) - skip
        before, skip = batch.cursor, 0
        while num_waiting >= size:
            yield _block(waiting, size, seed, block)
            num_waiting -= size
            block += 1
    if waiting:
        yield _block(waiting, num_waiting, seed, block)


def _block(waiting: deque[_Waiting], size: int, seed: int, block: int) -> Unit:
    """Take the first `size` documents out of `waiting`."""
    import pyarrow as pa

    parts: list[pa.Array] = []
    skipped: Counter[str] = Counter()
    first_skipped: FirstSkipped = {}
    source_bytes, left = 0, size
    end, place = Position(), ""
    while waiting and (left or waiting[0].used == len(waiting[0].batch.texts)):
        first = waiting[0]
        taken = first.batch.texts.slice(first.used, left)
        parts.append(taken)
        first.used += len(taken)
        left -= len(taken)
        place = first.batch.place
        end = Position(first.before, first.used, block + 1)
        if first.used == len(first.batch.texts):
            waiting.popleft()
            source_bytes += first.batch.source_bytes
            skipped.update(first.batch.skipped)
            first_skipped = {**first.batch.first_skipped, **first_skipped}
            end = Position(first.batch.cursor, 0, block + 1)
    texts = pa.concat_arrays(parts)
    texts = texts.take(pa.array(block_order(len(texts), seed, block)))
    return Unit(texts, source_bytes, skipped, end, place, first_skipped)
