"""Saves a snapshot so that it is there whole or not at all, whenever the process is killed.

The order of `SaveStage` is the commit protocol: everything is written, synchronised and hashed
under a hidden name, the manifest comes last, one rename makes the checkpoint appear, and only
then do `LATEST` and `BEST` move and old checkpoints go. A kill leaves a hidden directory, which
the next save removes. One directory belongs to one run: `run_lock.py` keeps others out.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from automodel_cli import __version__
from automodel_cli.engine import durable
from automodel_cli.engine.checkpoint import layout
from automodel_cli.engine.checkpoint.manifest import Manifest, examine, record_files, write_manifest
from automodel_cli.engine.checkpoint.snapshot import Snapshot
from automodel_cli.errors import CheckpointError

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
    """Reports to nobody."""


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
    """Writes `root/step_NNNNNN` and moves `LATEST` to it.

    Args:
        root: Directory of the run's checkpoints; made if need be.
        snapshot: What to save.
        facts: JSON-able values for the manifest, shown by `inspect-ckpt`.
        is_best: Also move `BEST`.
        max_recent: Keep this many of the highest steps, and whatever `LATEST` and `BEST` name;
            None keeps all.
        keep_every: Of the others, keep the multiples of so many steps.
        on_stage: Is told each finished stage, for progress displays and for tests.

    Returns:
        The new checkpoint directory.

    Raises:
        CheckpointError: This step is saved there already, the disk is too full, or writing failed.
            Earlier checkpoints and links are as they were.
        ValueError: `max_recent` is less than 1.
    """
    if max_recent is not None and max_recent < 1:
        raise ValueError(f"max_recent is {max_recent}, but at least 1 checkpoint must stay")
    final = root / layout.step_directory_name(snapshot.step)
    partial = root / layout.partial_directory_name(snapshot.step, os.getpid())
    links = (layout.LATEST, layout.BEST) if is_best else (layout.LATEST,)
    try:
        _prepare(root, final, snapshot)
        on_stage(SaveStage.PREPARED)
        _write_files(partial, snapshot)
        on_stage(SaveStage.TENSORS_WRITTEN)
        _sync_files(partial)
        on_stage(SaveStage.FILES_SYNCED)
        write_manifest(partial, _manifest(partial, snapshot.step, facts))
        durable.sync_directories(partial)
        on_stage(SaveStage.MANIFEST_WRITTEN)
        layout.announce_links(root, links, snapshot.step)
        on_stage(SaveStage.ANNOUNCED)
        partial.rename(final)
        durable.sync_directory(root)
        on_stage(SaveStage.RENAMED)
        layout.settle_links(root)
        on_stage(SaveStage.LINKED)
    except (OSError, SafetensorError) as error:
        _remove_tree(partial)
        raise _write_error(root, final, error, _needed_bytes(snapshot)) from error
    if max_recent is not None:
        prune(root, max_recent, keep_every)
    on_stage(SaveStage.PRUNED)
    return final


def _prepare(root: Path, final: Path, snapshot: Snapshot) -> None:
    root.mkdir(parents=True, exist_ok=True)
    layout.settle_links(root)
    clear_debris(root)
    _make_way(final)
    needed_bytes = _needed_bytes(snapshot)
    free_bytes = shutil.disk_usage(root).free
    if free_bytes < needed_bytes:
        raise CheckpointError(
            f"the checkpoint needs {needed_bytes:,} bytes, and the disk has {free_bytes:,} free",
            where=str(final),
            help="free some space, or keep fewer with checkpoint.max_recent_checkpoints",
        )


def _needed_bytes(snapshot: Snapshot) -> int:
    return _OVERHEAD_BYTES + sum(
        tensor.numel() * tensor.element_size() for _, tensors in _tensor_files(snapshot) for tensor in tensors.values()
    )


def clear_debris(root: Path) -> None:
    """Removes what killed saves have left under hidden names; that of living processes stays."""
    for path in root.iterdir():
        owner = layout.partial_owner(path.name)
        if owner is None or (owner != os.getpid() and _is_alive(owner)):
            continue
        if path.is_dir() and not path.is_symlink():
            _remove_tree(path)
        else:
            path.unlink()


def _remove_tree(path: Path) -> None:
    # A file that somebody reads over a network cannot always be removed. That must not stop a
    # training; the name is hidden by now, and the next save tries again.
    shutil.rmtree(path, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _make_way(final: Path) -> None:
    """Moves a broken checkpoint of this step aside; a good one is never overwritten."""
    if not os.path.lexists(final):
        return
    if final.is_symlink() or not final.is_dir():
        raise CheckpointError(
            "this name is taken, and not by a checkpoint directory",
            where=str(final),
            help="move it away, or set checkpoint.checkpoint_dir to another directory",
        )
    if not examine(final).broken:
        raise CheckpointError(
            "there is a checkpoint of this step already",
            where=str(final),
            help="set checkpoint.checkpoint_dir to another directory, or continue from the last checkpoint with "
            "`amcli resume`",
        )
    quarantine(final)


def quarantine(directory: Path) -> Path:
    """Renames a broken checkpoint to `broken-<name>`, so that nothing takes it for a good one."""
    for number in range(1, 1000):
        aside = directory.with_name(f"{layout.BROKEN_PREFIX}{directory.name}" + (f"-{number}" if number > 1 else ""))
        if not os.path.lexists(aside):
            directory.rename(aside)
            durable.sync_directory(directory.parent)
            return aside
    raise CheckpointError(f"there are 999 broken copies of {directory.name}", where=str(directory.parent))


def _tensor_files(snapshot: Snapshot) -> list[tuple[str, dict[str, torch.Tensor]]]:
    model = (layout.MODEL_FILE, snapshot.model_tensors)
    if snapshot.is_weights_only:
        return [model]
    return [
        model,
        (layout.OPTIMIZER_FILE, snapshot.optim_tensors),
        *(
            (layout.rng_file(rank), tensors)
            for rank, tensors in enumerate((snapshot.rng_tensors, *snapshot.peer_rng_tensors))
        ),
    ]


def _write_files(partial: Path, snapshot: Snapshot) -> None:
    texts = {
        layout.CONFIG_FILE: snapshot.config_yaml,
        layout.TRAIN_STATE_FILE: json.dumps(snapshot.train_state, indent=2) + "\n",
    }
    if snapshot.model_config is not None:
        texts[layout.MODEL_CONFIG_FILE] = json.dumps(snapshot.model_config, indent=2) + "\n"
    for directory in {(partial / name).parent for name in (*texts, *(name for name, _ in _tensor_files(snapshot)))}:
        directory.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (partial / name).write_text(text, encoding="utf-8", newline="\n")
    for name, tensors in _tensor_files(snapshot):
        # `format: pt` is what Hugging Face loaders look for before they read a file.
        save_file(tensors, partial / name, metadata={"format": "pt"})
        # safetensors makes files that only their owner may read; a checkpoint follows the umask like any other file.
        shutil.copymode(partial / layout.CONFIG_FILE, partial / name)


def _sync_files(partial: Path) -> None:
    for path in partial.rglob("*"):
        if path.is_file():
            durable.sync_file(path)


def _manifest(partial: Path, step: int, facts: dict[str, Any]) -> Manifest:
    return Manifest(
        amcli_version=__version__,
        step=step,
        saved_at=datetime.now(UTC).isoformat(timespec="seconds"),
        files=record_files(partial),
        facts=facts,
    )


def _write_error(root: Path, final: Path, error: OSError | SafetensorError, needed_bytes: int) -> CheckpointError:
    # safetensors reports a full disk as text only; its wording carries the number of the error.
    is_full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or f"os error {errno.ENOSPC}" in str(error)
    space = f"; it needs {needed_bytes:,} bytes"
    if root.is_dir():
        space += f", and without it the disk has {shutil.disk_usage(root).free:,} free"
    return CheckpointError(
        f"the checkpoint could not be written: {error}{space}",
        where=str(final),
        help="free some space, or keep fewer with checkpoint.max_recent_checkpoints"
        if is_full
        else "checkpoint.checkpoint_dir must be a directory that can be written to",
    )


def prune(root: Path, max_recent: int, keep_every: int | None = None) -> None:
    """Removes complete checkpoints beyond the `max_recent` highest steps, never `LATEST` or `BEST`.

    Multiples of `keep_every` steps stay too: the milestones of a long run.
    """
    steps = {path: step for step, path in layout.list_steps(root) if layout.is_complete(path)}
    complete = list(steps)
    kept = {layout.read_link(root, name) for name in layout.LINKS} | set(complete[-max_recent:])
    kept |= {path for path, step in steps.items() if keep_every is not None and step % keep_every == 0}
    for path in complete:
        if path not in kept:
            # Under its hidden name first: a kill in the middle must not leave half a checkpoint.
            doomed = root / f".{path.name}.tmp-{os.getpid()}"
            with contextlib.suppress(OSError):
                path.rename(doomed)
            _remove_tree(doomed)
