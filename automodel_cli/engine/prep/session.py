"""One run of a preparation: continues what an earlier run left, and works until the splits are full.

Everything happens unit by unit. Between two units the state is a few numbers and the lengths of
the unfinished shards; it is written down whenever a shard became full, and every few seconds and megabytes.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from automodel_cli.engine.prep.fast_engine import choose_engine, user_cache_dir
from automodel_cli.engine.prep.framing import Documents
from automodel_cli.engine.prep.output_dir import clear, identity
from automodel_cli.engine.prep.pipeline import Committer, Meter, documents_of_units
from automodel_cli.engine.prep.prep_plan import Plan
from automodel_cli.engine.prep.progress import Checkpoint, Reading, Unfinished
from automodel_cli.engine.prep.reading import Unit, read_units
from automodel_cli.engine.prep.split_writer import SplitWriter
from automodel_cli.engine.prep.tokenizer import Encoder, offsets_of
from automodel_cli.engine.shards.formats import FORMATS
from automodel_cli.engine.shards.manifest import SplitRecord
from automodel_cli.engine.shards.writer import ShardWriter
from automodel_cli.errors import AmcliError

if TYPE_CHECKING:
    import pyarrow as pa

_CHECKPOINT_SECONDS = 20.0
# Synchronised in steps, beside the work: a disk that gets a whole shard at once would stop all stages.
_CHECKPOINT_BYTES = 1 << 25
_CHUNKS_PER_WORKER = 4


@dataclass(frozen=True)
class PrepProgress:
    """How far preparation is.

    Attributes:
        fraction: 0 to 1, or `None` when the end is not known.
        tokens_per_second: Since this run began.
        text_bytes_per_second: Since this run began.
        seconds_left: `None` when the end is not known.
        workers_busy: Threads that tokenize at this moment.
        limited_by: The stage that sets the pace: `reading`, `tokenizing` or `writing`.
        place: Where the source is being read.
    """

    num_documents: int
    train_tokens: int
    val_tokens: int
    fraction: float | None
    tokens_per_second: float
    text_bytes_per_second: float
    seconds_left: float | None
    workers_busy: int
    workers: int
    limited_by: str
    place: str


OnProgress = Callable[[PrepProgress], None]
OnNote = Callable[[str], None]


class Session:
    """Fills the splits of one plan.

    Args:
        plan: What to make.
        committer: Makes things durable, in order.
        on_progress: Called after every unit.
        on_note: Called at most once, with what the user should know before the work begins.

    Attributes:
        reading: What was read so far, by earlier runs too.
        engine: What made the tokens; empty before `run`.
    """

    def __init__(self, plan: Plan, committer: Committer, on_progress: OnProgress, on_note: OnNote) -> None:
        self._plan = plan
        self._committer = committer
        self._on_progress = on_progress
        self._on_note = on_note
        self._identity = identity(plan.manifest)
        self._meter = Meter(plan.options.workers)
        self._splits = {split: self._writer(split) for split in ("train", "val")}
        self.reading = Reading()
        self.engine = ""
        self._checkpoint: Checkpoint | None = None
        self._committed_at = time.monotonic()
        self._committed_shards = self._committed_tokens = 0
        self._begun_tokens = self._begun_bytes = 0
        self._begun_fraction = 0.0

    def _writer(self, split: str) -> SplitWriter:
        plan = self._plan
        form, tokens = FORMATS[plan.options.format], plan.options.shard_tokens
        shards = ShardWriter(plan.directory, split, plan.framing.dtype, tokens, plan.framing.bos_id, form)
        shards.bos_is_eos = plan.manifest.tokenizer.bos_is_eos
        # A token that also marks the boundaries of documents cannot count unknown text.
        boundaries = (plan.framing.bos_id, plan.framing.eos_id)
        unk_id = None if plan.tokenizer.unk_id in boundaries else plan.tokenizer.unk_id
        return SplitWriter(shards, plan.framing.vocab_size, self._committer.run, unk_id)

    @property
    def train_tokens(self) -> int:
        """Tokens in the training split."""
        return self._splits["train"].tally.num_tokens

    @property
    def val_tokens(self) -> int:
        """Tokens in the validation split."""
        return self._splits["val"].tally.num_tokens

    @property
    def seconds(self) -> float:
        """How long this run has been at work."""
        return self._meter.seconds

    @property
    def stages(self) -> dict[str, float]:
        """The part of that time that each stage worked."""
        return self._meter.shares()

    def begin(self) -> None:
        """Note the settings in the directory, before anything is written there."""
        Checkpoint(self.reading, {}).write(self._plan.directory, self._identity)

    def continue_from(self, unfinished: Unfinished) -> None:
        """Continue what an earlier run left; what it wrote after its last checkpoint is removed.

        Raises:
            DataError: An unfinished shard is not there.
        """
        keep = {shard["name"].split(".")[0] for state in unfinished.splits.values() for shard in state["shards"]} | {
            f"{split}_{len(state['shards']):06d}" for split, state in unfinished.splits.items() if state["open_tokens"]
        }
        clear(self._plan.directory, allowed=True, keep=frozenset(keep) or frozenset({""}))
        for split, state in unfinished.splits.items():
            self._splits[split].continue_from(state)
        self.reading = unfinished.reading
        self.engine = unfinished.engine
        self._begun_tokens = self.train_tokens + self.val_tokens
        self._begun_bytes = sum(split.tally.text_bytes for split in self._splits.values())
        self._begun_fraction = self._fraction() or 0.0
        self._committed_shards, self._committed_tokens = self._num_full_shards(), self._begun_tokens

    def run(self) -> None:
        """Work until the splits are full or the source ends.

        Raises:
            AmcliError: The source cannot be read, or the disk is full; what was done is kept.
        """
        plan = self._plan
        try:
            if not self._is_satisfied():
                units = read_units(plan.source, self.reading.position, plan.options.seed, plan.options.shuffle_buffer)
                with self._meter.working("reading"):
                    first = next(units, None)
                if first is not None:
                    self._fill(itertools.chain([first], units), self._choose(first))
        except BaseException:
            self._keep()
            raise

    def close(self) -> dict[str, SplitRecord]:
        """Finish the last shards; the records of the splits that hold anything."""
        return {name: split.close() for name, split in self._splits.items() if split.tally.num_tokens}

    def release(self) -> None:
        """Close the unfinished shards and leave them where they are."""
        for split in self._splits.values():
            split.release()

    def _choose(self, first: Unit) -> Encoder:
        # Preparation brings its own threads; those of the tokenizers library would only add to them.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        choice = choose_engine(self._plan.tokenizer, first.texts, user_cache_dir())
        if choice.note is not None:
            self._on_note(choice.note)
        self.engine = choice.encoder.engine
        return choice.encoder

    def _fill(self, units: Iterator[Unit], encoder: Encoder) -> None:
        options, framing = self._plan.options, self._plan.framing

        def frame(texts: pa.Array) -> Documents:
            return framing.frame(encoder.encode_batch(texts), np.diff(offsets_of(texts)))

        with closing(
            documents_of_units(
                units,
                frame,
                workers=options.workers,
                chunk_documents=options.chunk_size,
                prefetch=options.prefetch or _CHUNKS_PER_WORKER * options.workers,
                meter=self._meter,
            )
        ) as results:
            for unit, documents in results:
                with self._meter.working("writing"):
                    self._write(unit, documents)
                    self._commit_if_due()
                self._on_progress(self._progress(unit.place))
                if self._is_satisfied():
                    return

    def _write(self, unit: Unit, documents: Documents) -> None:
        """Send the documents of a unit to their splits."""
        reading, hold_out = self.reading, self._plan.hold_out
        lengths = np.diff(documents.offsets)
        read_tokens = reading.num_tokens + len(documents.tokens)
        read_bytes = reading.source_bytes + unit.source_bytes
        total_bytes = self._plan.source.total_bytes
        corpus_tokens = read_tokens / read_bytes * total_bytes if total_bytes and read_bytes else None
        seen = reading.seen(self.train_tokens, self.val_tokens)
        held_out = hold_out.choose(lengths, seen, corpus_tokens)
        cursor = reading.position.cursor
        room = None if hold_out.max_tokens is None else hold_out.max_tokens - self.train_tokens
        self._splits["train"].add(documents, ~held_out, cursor, room)
        self._splits["val"].add(documents, held_out, cursor)
        # Every text has bytes; the later pieces of one that was split have none.
        num_texts = int(np.count_nonzero(documents.text_bytes[: len(held_out)]))
        self.reading = reading.after(unit, len(held_out), num_texts, len(documents.tokens))
        self._checkpoint = Checkpoint(
            self.reading, {name: split.snapshot() for name, split in self._splits.items()}, self.engine
        )

    def _is_satisfied(self) -> bool:
        return self._plan.hold_out.is_satisfied(self.reading.seen(self.train_tokens, self.val_tokens))

    def _num_full_shards(self) -> int:
        return sum(split.num_full_shards for split in self._splits.values())

    def _commit_if_due(self) -> None:
        num_shards, now = self._num_full_shards(), time.monotonic()
        num_tokens = self.train_tokens + self.val_tokens
        if (
            num_shards > self._committed_shards
            or (num_tokens - self._committed_tokens) * self._plan.framing.dtype.itemsize >= _CHECKPOINT_BYTES
            or now - self._committed_at > _CHECKPOINT_SECONDS
        ):
            self._committed_shards, self._committed_tokens, self._committed_at = num_shards, num_tokens, now
            self._commit()

    def _commit(self) -> None:
        checkpoint = self._checkpoint
        if checkpoint is not None:
            self._committer.run(lambda: checkpoint.write(self._plan.directory, self._identity))

    def _keep(self) -> None:
        """Write down the last whole unit; a failure here must not hide what stopped the run."""
        with suppress(AmcliError, OSError):
            self._commit()
            self._committer.wait()

    def _fraction(self) -> float | None:
        parts = []
        if self._plan.hold_out.max_tokens is not None:
            parts.append(self.train_tokens / self._plan.hold_out.max_tokens)
        if self._plan.source.total_bytes:
            parts.append(self.reading.source_bytes / self._plan.source.total_bytes)
        return min(1.0, max(parts)) if parts else None

    def _progress(self, place: str) -> PrepProgress:
        seconds = max(self._meter.seconds, 1e-9)
        fraction = self._fraction()
        done = 0.0 if fraction is None else fraction - self._begun_fraction
        text_bytes = sum(split.tally.text_bytes for split in self._splits.values())
        return PrepProgress(
            num_documents=self.reading.num_documents,
            train_tokens=self.train_tokens,
            val_tokens=self.val_tokens,
            fraction=fraction,
            tokens_per_second=(self.train_tokens + self.val_tokens - self._begun_tokens) / seconds,
            text_bytes_per_second=(text_bytes - self._begun_bytes) / seconds,
            seconds_left=None if fraction is None or done <= 0 else seconds * (1 - fraction) / done,
            workers_busy=self._meter.workers_busy,
            workers=self._plan.options.workers,
            limited_by=self._meter.limit(),
            place=place,
        )
