"""`progress.json`: how far an unfinished preparation is, so that the same command can continue.

It is replaced as a whole, after all shards that it names are on the disk. What was written later
is cut off when the work continues, and is then written again with the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from automodel_cli.engine.bounded import UnsoundError, read_object, shown, typed
from automodel_cli.engine.durable import explain_write_errors, sync_file, write_durably
from automodel_cli.engine.prep.hold_out import Seen
from automodel_cli.engine.prep.left_out import FirstSkipped, add_skipped
from automodel_cli.engine.prep.reading import Position, Unit
from automodel_cli.engine.prep.split_writer import SplitSnapshot, StoredSplit
from automodel_cli.errors import DataError

PROGRESS_NAME = "progress.json"
_FORMAT = "amcli-prep-progress"
_FORMAT_VERSION = 1


@dataclass(frozen=True)
class Reading:
    """What was read up to a place between two units.

    Attributes:
        position: The place.
        num_documents: Documents that went to a split, pieces of split documents counted each.
        num_texts: Texts that they came from.
        num_tokens: Tokens, also those behind the budget.
        source_bytes: Bytes of the source.
        skipped: Bad documents by reason.
        first_skipped: The first of each reason, as in `DocumentBatch`.
    """

    position: Position = field(default_factory=Position)
    num_documents: int = 0
    num_texts: int = 0
    num_tokens: int = 0
    source_bytes: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    first_skipped: FirstSkipped = field(default_factory=dict)

    def seen(self, train_tokens: int, val_tokens: int) -> Seen:
        """The same for the rule that holds documents out."""
        return Seen(self.num_documents, val_tokens, train_tokens)

    def after(self, unit: Unit, num_documents: int, num_texts: int, num_tokens: int) -> Reading:
        """What was read after one more unit, of which `num_documents` were used; `num_tokens` are those of all."""
        return Reading(
            unit.end,
            self.num_documents + num_documents,
            self.num_texts + num_texts,
            self.num_tokens + num_tokens,
            self.source_bytes + unit.source_bytes,
            *add_skipped(self.skipped, self.first_skipped, unit),
        )


@dataclass(frozen=True)
class Checkpoint:
    """A state of preparation between two units.

    Attributes:
        engine: What made the tokens.
    """

    reading: Reading
    splits: Mapping[str, SplitSnapshot]
    engine: str = ""

    def write(self, directory: Path, identity: Mapping[str, Any]) -> None:
        """Synchronise the unfinished shards with the disk, then replace `progress.json`.

        Args:
            directory: Where the shards are.
            identity: The settings that decide about the bytes.

        Raises:
            DataError: The disk is full, or a shard could not be finished.
        """
        state = {
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            "identity": dict(identity),
            "engine": self.engine,
            "reading": asdict(self.reading),
            "splits": {name: split.to_dict() for name, split in self.splits.items()},
        }
        for split in self.splits.values():
            # A shard that became full since was synchronised when it got its name.
            if split.open_file is not None and split.open_file.exists():
                with explain_write_errors(split.open_file):
                    sync_file(split.open_file)
        write_durably(directory / PROGRESS_NAME, json.dumps(state).encode())


@dataclass(frozen=True)
class Unfinished:
    """What `progress.json` says.

    Attributes:
        splits: As `SplitSnapshot.to_dict` gave them; none when it had only begun.
        engine: What made its tokens.
    """

    identity: dict[str, Any]
    reading: Reading
    splits: dict[str, dict[str, Any]]
    engine: str


def load_progress(directory: Path) -> Unfinished | None:
    """Read `progress.json`; `None` when there is none.

    Raises:
        DataError: It is damaged, or of another version.
    """
    path = directory / PROGRESS_NAME
    if not os.path.lexists(path):
        return None
    again = "make the data again with --overwrite"
    raw = read_object(path, DataError, what="the progress", help=again, allow_surrogates=True)
    if (raw.get("format"), raw.get("format_version")) != (_FORMAT, _FORMAT_VERSION):
        raise DataError(
            f"the preparation was begun by another version of amcli (format {shown(raw.get('format_version'))})",
            where=str(path),
            help=f"finish it with that version, or {again}",
        )
    try:
        stored = typed(_Stored, raw)
    except UnsoundError as error:
        raise DataError(f"the progress is damaged: {error}", where=str(path), help=again) from error
    return Unfinished(stored.identity, stored.reading, raw["splits"], stored.engine)


@dataclass(frozen=True)
class _Stored:
    format: str
    format_version: int
    identity: dict[str, Any]
    engine: str
    reading: Reading
    splits: dict[str, StoredSplit]
