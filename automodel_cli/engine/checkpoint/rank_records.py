"""Synchronises the ranks of a save by small files beside what they write. No torch, and no messages between ranks.

Each rank leaves a record of its files, or the reason why it has none; rank 0 waits for all records before it publishes
the checkpoint. So a save can run during training without disturbing the messages of the process group.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from automodel_cli.engine.bounded import read_object
from automodel_cli.engine.checkpoint.manifest import FileRecord
from automodel_cli.errors import CheckpointError

RECORDS = "records"
# How long rank 0 waits while nothing grows in the directory.
PATIENCE_SECONDS = 600.0
_PAUSE_SECONDS = (0.005, 0.2)  # the first, and the longest


def leave_record(directory: Path, rank: int, files: dict[str, FileRecord]) -> None:
    """Records that a rank has written its files, and that the disk has them."""
    _leave(directory, rank, {"files": {name: [record.num_bytes, record.sha256] for name, record in files.items()}})


def leave_failure(directory: Path, rank: int, error: CheckpointError) -> None:
    """Records that a rank cannot write its files; does nothing where the record cannot be written either."""
    try:
        _leave(directory, rank, {"failure": f"rank {rank} on {platform.node()}: {error.message}", "help": error.help})
    except OSError:
        return  # rank 0 waits in vain, and says so


def collect_records(directory: Path, ranks: Iterable[int]) -> dict[str, FileRecord]:
    """Waits until all ranks have left their records, and gives what they wrote.

    Args:
        directory: Directory of the unfinished checkpoint.
        ranks: The ranks to wait for.

    Raises:
        CheckpointError: A rank has failed, or nothing happens any more, or a file is not what its record says.
    """
    missing, found = set(ranks), dict[str, FileRecord]()
    pause, longest = _PAUSE_SECONDS
    progress, deadline = -1, 0.0
    while True:
        for rank in sorted(missing & _present(directory)):
            found |= _checked(directory, _read(directory, rank))
            missing.discard(rank)
        if not missing:
            return found
        now, seen = time.monotonic(), _bytes_below(directory)
        if seen != progress:
            progress, deadline = seen, now + PATIENCE_SECONDS
        elif now > deadline:
            raise CheckpointError(
                f"{_ranks(missing)} did not finish writing: for {PATIENCE_SECONDS:.0f} s nothing was written",
                where=str(directory.parent),
                help="all machines must see this directory as rank 0 does",
            )
        time.sleep(pause)
        pause = min(2 * pause, longest)


def _leave(directory: Path, rank: int, values: dict[str, Any]) -> None:
    place = directory / RECORDS / f"rank{rank}.json"
    place.parent.mkdir(exist_ok=True)
    fresh = place.with_suffix(".tmp")
    fresh.write_text(json.dumps(values))
    # Whole or not at all: rank 0 may be looking.
    fresh.replace(place)


def _present(directory: Path) -> set[int]:
    """Ranks whose record is there; by listing the directory, since a network file system remembers absent names."""
    try:
        names = [path.name for path in (directory / RECORDS).iterdir()]
    except FileNotFoundError:
        return set()
    return {int(name[4:-5]) for name in names if name.endswith(".json")}


def _read(directory: Path, rank: int) -> dict[str, FileRecord]:
    path = directory / RECORDS / f"rank{rank}.json"
    values = read_object(path, CheckpointError, what="what a rank has written")
    if "failure" in values:
        raise CheckpointError(str(values["failure"]), where=str(directory.parent), help=str(values.get("help") or ""))
    try:
        return {name: FileRecord(int(size), str(digest)) for name, (size, digest) in values["files"].items()}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"what a rank has written is damaged: {error!r}", where=str(path)) from error


def _checked(directory: Path, files: dict[str, FileRecord]) -> dict[str, FileRecord]:
    for name, record in files.items():
        path = directory / name
        size = path.stat().st_size if path.is_file() else None
        if size != record.num_bytes:
            raise CheckpointError(
                f"{name} has {size} bytes here, and {record.num_bytes:,} where it was written",
                where=str(directory.parent),
                help="all machines must see this directory as rank 0 does",
            )
    return files


def _bytes_below(directory: Path) -> int:
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            path = Path(parent, name)
            total += path.stat().st_size if path.exists() else 0
    return total


def _ranks(numbers: set[int]) -> str:
    some = ", ".join(map(str, sorted(numbers)[:8]))
    return f"rank{'s' if len(numbers) > 1 else ''} {some}" + (" and more" if len(numbers) > 8 else "")
