"""Saves a snapshot so that it is there whole or not at all, whenever the process is killed.

The order of `SaveStage` is the commit protocol: everything is written, synchronised and hashed
under a hidden name, the manifest comes last, one rename makes the checkpoint appear, and only
then do `LATEST` and `BEST` move and old checkpoints go. A kill leaves a hidden directory, which
the next save removes. One directory belongs to one run: `run_directory.py` keeps others out.

Each rank writes its files into the same hidden directory and leaves a record (`rank_records.py`); rank 0 publishes when
all records are there. Only rank 0 calls `begin`, before any rank writes. Every rank calls `finish`, which sends no
messages and may run on a thread of its own.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from automodel_cli import __version__
from automodel_cli.engine import durable
from automodel_cli.engine.checkpoint import layout
from automodel_cli.engine.checkpoint.manifest import FileRecord, Manifest, write_manifest
from automodel_cli.engine.checkpoint.rank_files import RankFiles, whole_checkpoint
from automodel_cli.engine.checkpoint.rank_records import RECORDS, collect_records, leave_failure, leave_record
from automodel_cli.engine.checkpoint.run_directory import clear_debris, make_way, prune, remove_tree
from automodel_cli.engine.checkpoint.snapshot import Snapshot
from automodel_cli.errors import CheckpointError, PeerFailedError

# Room for headers, JSON files and the file system's own blocks, beside the tensors.
_OVERHEAD_BYTES = 4 * 2**20


class SaveStage(StrEnum):
    """What a save has just finished, in this order."""

    PREPARED = "prepared"
    TENSORS_WRITTEN = "tensors written"
    FILES_SYNCED = "files synced"
    MANIFEST_WRITTEN = "manifest written"
    ANNOUNCED = "announced"
    RENAMED = "renamed"
    LINKED = "linked"
    PRUNED = "pruned"


def _silent(stage: SaveStage) -> None:
    """Ignores the stage."""


@dataclass(frozen=True)
class Publication:
    """How a checkpoint is published, once it is written.

    Args:
        facts: JSON-able values for the manifest, shown by `inspect-ckpt`.
        is_best: Also move `BEST`.
        max_recent: Keep this many of the highest steps, and whatever `LATEST` and `BEST` name;
            None keeps all.
        keep_every: Also keep the checkpoints whose step is a multiple of this.

    Raises:
        ValueError: `max_recent` is less than 1.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    is_best: bool = False
    max_recent: int | None = None
    keep_every: int | None = None

    def __post_init__(self) -> None:
        if self.max_recent is not None and self.max_recent < 1:
            raise ValueError(f"max_recent is {self.max_recent}, but at least 1 checkpoint must stay")


@dataclass(frozen=True)
class Saving:
    """A save that `begin` has prepared, seen from one rank.

    Args:
        root: Directory of the run's checkpoints.
        step: Optimisation steps done.
        partial: The hidden directory that `begin` has made; the same one on every rank.
        rank_files: What this rank writes.
        publication: On rank 0; None on all others.
        writers: Number of ranks that write.
    """

    root: Path
    step: int
    partial: Path
    rank_files: RankFiles
    publication: Publication | None
    rank: int = 0
    writers: int = 1


def save(
    root: Path,
    snapshot: Snapshot,
    *,
    facts: dict[str, Any],
    is_best: bool = False,
    max_recent: int | None = None,
    keep_every: int | None = None,
    on_stage: Callable[[SaveStage], None] = _silent,
) -> Path:
    """Writes `root/step_NNNNNN` and moves `LATEST` to it: a whole checkpoint from one process.

    Args:
        root: Directory of the run's checkpoints; made if need be.
        snapshot: What to save.
        facts: See `Publication`.
        is_best: See `Publication`.
        max_recent: See `Publication`.
        keep_every: See `Publication`.
        on_stage: Called with each finished stage, for progress displays and tests.

    Returns:
        The new checkpoint directory.

    Raises:
        CheckpointError: This step is saved there already, the disk is too full, or writing failed.
            Earlier checkpoints and links are as they were.
        ValueError: `max_recent` is less than 1.
    """
    publication = Publication(facts, is_best, max_recent, keep_every)
    rank_files = whole_checkpoint(snapshot)
    partial = begin(root, snapshot.step, rank_files.num_bytes)
    return finish(Saving(root, snapshot.step, partial, rank_files, publication), on_stage)


def begin(root: Path, step: int, num_bytes: int) -> Path:
    """Makes room for a checkpoint, and the hidden directory that it is written into.

    Args:
        root: Directory of the run's checkpoints; made if need be.
        step: Optimisation steps done.
        num_bytes: Size of all tensors of all ranks.

    Raises:
        CheckpointError: This step is saved there already, or the disk is too full.
    """
    final = root / layout.step_directory_name(step)
    partial = root / layout.partial_directory_name(step, os.getpid())
    try:
        root.mkdir(parents=True, exist_ok=True)
        layout.settle_links(root)
        clear_debris(root)
        make_way(final)
        needed_bytes, free_bytes = num_bytes + _OVERHEAD_BYTES, shutil.disk_usage(root).free
        if free_bytes < needed_bytes:
            raise CheckpointError(
                f"the checkpoint needs {needed_bytes:,} bytes, and the disk has {free_bytes:,} free",
                where=str(final),
                help="free some space, or keep fewer with checkpoint.max_recent_checkpoints",
            )
        partial.mkdir()
    except OSError as error:
        raise _write_error(root, final, error, num_bytes) from error
    return partial


def finish(saving: Saving, on_stage: Callable[[SaveStage], None] = _silent) -> Path:
    """Writes this rank's files; on rank 0 it also waits for the others, and publishes the checkpoint.

    Returns:
        The new checkpoint directory; on other ranks than 0 it may not be there yet.

    Raises:
        CheckpointError: It could not be written, here or on another rank. Nothing is published; earlier
            checkpoints and links are as they were.
        PeerFailedError: On other ranks than 0: this one could not write its files, and rank 0 says so.
        ValueError: A rank other than 0 was given a publication, or rank 0 none.
    """
    final = saving.root / layout.step_directory_name(saving.step)
    if (saving.publication is None) != (saving.rank > 0):
        raise ValueError("rank 0, and no other, publishes")
    if saving.publication is None:
        _write_for_others(saving, final, on_stage)
        return final
    try:
        on_stage(SaveStage.PREPARED)
        files = _write(saving, on_stage)
        files |= collect_records(saving.partial, range(1, saving.writers))
        remove_tree(saving.partial / RECORDS)
        _publish(saving, saving.publication, files, final, on_stage)
    except OSError as error:
        remove_tree(saving.partial)
        raise _write_error(saving.root, final, error, saving.rank_files.num_bytes) from error
    except CheckpointError:
        remove_tree(saving.partial)
        raise
    if saving.publication.max_recent is not None:
        prune(saving.root, saving.publication.max_recent, saving.publication.keep_every)
    on_stage(SaveStage.PRUNED)
    return final


def _write(saving: Saving, on_stage: Callable[[SaveStage], None]) -> dict[str, FileRecord]:
    files = saving.rank_files.write(saving.partial)
    on_stage(SaveStage.TENSORS_WRITTEN)
    saving.rank_files.sync(saving.partial)
    on_stage(SaveStage.FILES_SYNCED)
    return files


def _write_for_others(saving: Saving, final: Path, on_stage: Callable[[SaveStage], None]) -> None:
    try:
        leave_record(saving.partial, saving.rank, _write(saving, on_stage))
    except (OSError, CheckpointError) as error:
        known = error
        if not isinstance(known, CheckpointError):
            known = _write_error(saving.root, final, known, saving.rank_files.num_bytes)
        leave_failure(saving.partial, saving.rank, known)
        raise PeerFailedError("this rank could not write its part of the checkpoint") from error


def _publish(
    saving: Saving,
    publication: Publication,
    files: dict[str, FileRecord],
    final: Path,
    on_stage: Callable[[SaveStage], None],
) -> None:
    links = (layout.LATEST, layout.BEST) if publication.is_best else (layout.LATEST,)
    write_manifest(saving.partial, _manifest(saving.step, files, publication.facts))
    durable.sync_directories(saving.partial)
    on_stage(SaveStage.MANIFEST_WRITTEN)
    layout.announce_links(saving.root, links, saving.step)
    on_stage(SaveStage.ANNOUNCED)
    saving.partial.rename(final)
    durable.sync_directory(saving.root)
    on_stage(SaveStage.RENAMED)
    layout.settle_links(saving.root)
    on_stage(SaveStage.LINKED)


def _manifest(step: int, files: dict[str, FileRecord], facts: dict[str, Any]) -> Manifest:
    return Manifest(
        amcli_version=__version__,
        step=step,
        saved_at=datetime.now(UTC).isoformat(timespec="seconds"),
        files=files,
        facts=facts,
    )


def _write_error(root: Path, final: Path, error: OSError, num_bytes: int) -> CheckpointError:
    space = f"; it needs {num_bytes + _OVERHEAD_BYTES:,} bytes"
    if root.is_dir():
        space += f", and without it the disk has {shutil.disk_usage(root).free:,} free"
    return CheckpointError(
        f"the checkpoint could not be written: {error}{space}", where=str(final), help=_way_out(error.errno)
    )


def _way_out(error_number: int | None) -> str:
    if error_number in (errno.ENOSPC, errno.EDQUOT):
        return "free some space, or keep fewer with checkpoint.max_recent_checkpoints"
    if error_number == errno.EFBIG:
        return "raise the limit on the size of a file (`ulimit -f`), or choose a file system that allows longer ones"
    return "checkpoint.checkpoint_dir must be a directory that can be written to"
