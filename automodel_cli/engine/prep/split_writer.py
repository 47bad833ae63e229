"""Writes and counts the documents of one split, and can be saved between any two units.

A snapshot is what another process needs to go on (`continue_from`): numbers, and how many tokens
of the unfinished shard belong to it.
"""

from __future__ import annotations

import base64
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from automodel_cli.engine.prep.framing import Documents
from automodel_cli.engine.shards.manifest import ShardRecord, SplitRecord
from automodel_cli.engine.shards.scan import unigram_entropy_nats
from automodel_cli.engine.shards.writer import Run, ShardWriter
from automodel_cli.errors import DataError

_COUNTED_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Tally:
    """What was counted in one split; its last document may be cut.

    Attributes:
        text_bytes: Bytes of UTF-8 that the tokens came from.
        over_length_documents: Documents that were cut or split because they were too long.
    """

    num_documents: int = 0
    num_tokens: int = 0
    text_bytes: int = 0
    longest_document_tokens: int = 0
    over_length_documents: int = 0


@dataclass(frozen=True)
class SplitSnapshot:
    """One split between two units.

    Attributes:
        counts: How often each id occurs, shape (vocab_size,).
        shards: The full shards; the futures are done when the shards are safe.
        open_tokens: Tokens in the unfinished shard.
        open_file: Its file, which is not synchronised yet; `None` if there is no unfinished shard.
        source_cursor: What the unfinished shard's record will have, unless more is written.
    """

    tally: Tally
    counts: npt.NDArray[np.int64]
    shards: tuple[Future[ShardRecord], ...]
    open_tokens: int
    open_file: Path | None
    source_cursor: str | None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; waits for the shards."""
        return {
            **asdict(self.tally),
            # As bytes: a vocabulary has up to some hundred thousand entries, and this is written often.
            "counts": base64.b64encode(self.counts.astype("<i8").tobytes()).decode(),
            "shards": [asdict(shard.result()) for shard in self.shards],
            "open_tokens": self.open_tokens,
            "source_cursor": self.source_cursor,
        }


@dataclass(frozen=True)
class StoredSplit(Tally):
    """What `SplitSnapshot.to_dict` gives."""

    counts: str = ""
    shards: tuple[ShardRecord, ...] = ()
    open_tokens: int = 0
    source_cursor: str | None = None


class SplitWriter:
    """Appends documents to the shards of one split.

    Args:
        run: Finishes full shards.
        unk_id: The id of what the tokenizer does not know; `None` if it knows everything.
    """

    def __init__(self, shards: ShardWriter, vocab_size: int, run: Run, unk_id: int | None = None) -> None:
        self._shards = shards
        self._shards.run = run
        self._unk_id = unk_id
        self._counts = np.zeros(vocab_size, dtype=np.int64)
        self.tally = Tally()

    def continue_from(self, state: dict[str, Any]) -> None:
        """Continue at a snapshot that was written as JSON.

        Raises:
            DataError: The unfinished shard is not there, or the counts are of another vocabulary.
        """
        self.tally = Tally(**{name: state[name] for name in asdict(self.tally)})
        counts = base64.b64decode(state["counts"])
        if len(counts) != self._counts.nbytes:
            raise DataError(
                f"the progress counts {len(counts) // 8:,} tokens of the vocabulary, which has {len(self._counts):,}",
                help="make the data again with --overwrite",
            )
        self._counts = np.frombuffer(counts, dtype="<i8").astype(np.int64)
        self._shards.source_cursor = state["source_cursor"]
        self._shards.continue_from([ShardRecord(**shard) for shard in state["shards"]], state["open_tokens"])

    def add(
        self, documents: Documents, chosen: npt.NDArray[np.bool_], cursor: str | None, room: int | None = None
    ) -> None:
        """Append the chosen documents of a unit.

        Args:
            documents: The unit; those beyond the length of `chosen` are left out.
            chosen: Whether each one goes to this split, shape (at most documents,).
            cursor: The place in the source before the unit.
            room: Tokens that may still be written; the last document is cut there. `None` for no limit.
        """
        used = np.flatnonzero(chosen)
        lengths = np.diff(documents.offsets)[used]
        if room is not None:
            before = np.cumsum(lengths) - lengths
            # Nothing begins behind the budget, not even a document without tokens.
            used, lengths, before = (part[before < room] for part in (used, lengths, before))
            lengths = np.minimum(lengths, room - before)
        if not len(used):
            return
        tokens = _gather(documents, used, int(lengths.sum()))
        self._shards.source_cursor = cursor
        self._shards.write(tokens)
        # Counting takes eight bytes for each token that is looked at.
        for begin in range(0, len(tokens), _COUNTED_AT_ONCE):
            self._counts += np.bincount(tokens[begin : begin + _COUNTED_AT_ONCE], minlength=len(self._counts))
        self.tally = Tally(
            self.tally.num_documents + len(used),
            self.tally.num_tokens + len(tokens),
            self.tally.text_bytes + int(documents.text_bytes[used].sum()),
            max(self.tally.longest_document_tokens, int(lengths.max())),
            self.tally.over_length_documents + int(documents.over_length[used].sum()),
        )

    def snapshot(self) -> SplitSnapshot:
        """How far the split is; what was written is with the operating system by then."""
        return SplitSnapshot(
            self.tally,
            self._counts.copy(),
            tuple(self._shards.records),
            self._shards.open_tokens,
            self._shards.flush(),
            self._shards.source_cursor,
        )

    def release(self) -> None:
        """Leave the unfinished shard where it is."""
        self._shards.release()

    @property
    def num_full_shards(self) -> int:
        """Shards that are full."""
        return len(self._shards.records)

    def close(self) -> SplitRecord:
        """Finish the last shard."""
        return SplitRecord(
            num_documents=self.tally.num_documents,
            num_tokens=self.tally.num_tokens,
            text_bytes=self.tally.text_bytes,
            max_token_id=int(np.flatnonzero(self._counts).max(initial=0)),
            longest_document_tokens=self.tally.longest_document_tokens,
            unigram_entropy_nats=unigram_entropy_nats(self._counts),
            shards=tuple(self._shards.close()),
            over_length_documents=self.tally.over_length_documents,
            unknown_tokens=0 if self._unk_id is None else int(self._counts[self._unk_id]),
        )


def _gather(documents: Documents, used: npt.NDArray[np.int64], num_tokens: int) -> npt.NDArray[Any]:
    """The first `num_tokens` tokens of the documents with these numbers."""
    # Neighbours are copied together: nearly all documents of a unit go to the same split.
    breaks = np.flatnonzero(np.diff(used) != 1) + 1
    firsts = used[np.concatenate(([0], breaks))]
    lasts = used[np.concatenate((breaks - 1, [len(used) - 1]))]
    begins, ends = documents.offsets[firsts].tolist(), documents.offsets[lasts + 1].tolist()
    runs = [documents.tokens[begin:end] for begin, end in zip(begins, ends, strict=True)]
    return (runs[0] if len(runs) == 1 else np.concatenate(runs))[:num_tokens]
