"""Loads checkpoints, after every byte has been compared with the manifest.

A broken checkpoint is never used: `load` refuses it, and `load_newest_good` sets it aside, falls
back to the one before and says so. Loading executes nothing that a checkpoint contains. Weights and
optimizer state stay in their files until they are asked for.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from automodel_cli.engine.bounded import read_bytes
from automodel_cli.engine.checkpoint import layout
from automodel_cli.engine.checkpoint.manifest import Manifest, NewerFormatError, compare, read_manifest, use_earlier
from automodel_cli.engine.checkpoint.read_tensors import LazyTensors, checkpoint_weights
from automodel_cli.engine.checkpoint.run_directory import quarantine
from automodel_cli.engine.checkpoint.snapshot import Snapshot, read_train_state
from automodel_cli.engine.checkpoint.tensor_index import json_object
from automodel_cli.errors import CheckpointError


def load(directory: Path) -> Snapshot:
    """Reads a checkpoint after verifying the size and SHA-256 of all of its files.

    Args:
        directory: A checkpoint, as `layout.resolve` returns it.

    Raises:
        CheckpointError: It is incomplete, damaged, or of another format.
    """
    try:
        manifest = _verified(directory)
        return _read(directory, manifest)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise _unreadable(directory, error) from error


def load_newest_good(root: Path) -> tuple[Snapshot, Path, list[str]]:
    """Loads `LATEST`; if it is broken, the nearest earlier checkpoint that is not.

    Broken ones are renamed to `broken-step_NNNNNN`, and `LATEST` moves to the one that is loaded.
    One that cannot be read at this moment (permissions, a failing disk) is skipped and left as it is.

    Returns:
        The snapshot, its directory, and one line for each checkpoint that was passed over.

    Raises:
        NewerFormatError: A newer amcli wrote the next one in line; older ones are not taken in its place.
        CheckpointError: None can be loaded; the message says why, one by one.
    """
    notes: list[str] = []
    for directory in _candidates(root):
        try:
            manifest = _verified(directory)
        except NewerFormatError:
            raise
        except CheckpointError as error:
            notes.append(_set_aside(directory, error.message))
            continue
        except OSError as error:
            notes.append(f"{directory.name} is skipped: it cannot be read ({error})")
            continue
        try:
            snapshot = _read(directory, manifest)
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise _unreadable(directory, error) from error
        if notes:
            _repair_links(root, directory)
        return snapshot, directory, notes
    reasons = "".join(f"\n  {note}" for note in notes)
    raise CheckpointError(
        f"there is no checkpoint that can be loaded{reasons}",
        where=str(root),
        help="start the run anew, in another checkpoint.checkpoint_dir",
    )


def _candidates(root: Path) -> list[Path]:
    """`LATEST` and what is before it, newest first; everything if there is no `LATEST`."""
    latest = layout.read_link(root, layout.LATEST)
    last_step = layout.step_of(latest.name) if latest is not None else None
    return [path for step, path in reversed(layout.list_steps(root)) if last_step is None or step <= last_step]


def _verified(directory: Path) -> Manifest:
    """The manifest, once everything that it lists is there with the right bytes."""
    manifest = read_manifest(directory)
    broken = list(compare(directory, manifest).broken)
    if manifest.step != layout.step_of(directory.name) and layout.step_of(directory.name) is not None:
        broken.append(f"it holds step {manifest.step}, not the step of its name")
    if broken:
        raise CheckpointError(
            "the checkpoint is damaged: " + "; ".join(broken),
            where=str(directory),
            help=use_earlier(directory),
        )
    return manifest


def _read(directory: Path, manifest: Manifest) -> Snapshot:
    weights_only = layout.is_weights_only(manifest)
    return Snapshot(
        step=manifest.step,
        config_yaml=read_bytes(directory / layout.CONFIG_FILE).decode(),
        model_tensors=checkpoint_weights(directory, manifest.files),
        model_config=json_object(directory / layout.MODEL_CONFIG_FILE)
        if layout.MODEL_CONFIG_FILE in manifest.files
        else None,
        optim_tensors={} if weights_only else LazyTensors(directory / name for name in _optimizer_files(manifest)),
        train_state=read_train_state(directory / layout.TRAIN_STATE_FILE, manifest.step),
        rng_tensors={} if weights_only else load_file(directory / layout.rng_file(rank=0)),
        peer_rng_tensors=tuple(load_file(directory / name) for name in _peer_rng_files(manifest)),
    )


def _optimizer_files(manifest: Manifest) -> list[str]:
    names = layout.optimizer_files(manifest.files)
    if not names:
        raise ValueError("the optimizer's state is not in the manifest")
    return names


def _peer_rng_files(manifest: Manifest) -> list[str]:
    """The generators of ranks 1, 2, ..., as many as there are without a gap."""
    names = (layout.rng_file(rank) for rank in itertools.count(1))
    return list(itertools.takewhile(lambda name: name in manifest.files, names))


def _unreadable(directory: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint cannot be read: {error}",
        where=str(directory),
        help="its bytes are as they were saved, so another version of amcli may have written it",
    )


def _set_aside(directory: Path, reason: str) -> str:
    try:
        aside = quarantine(directory)
    except OSError as error:
        return f"{directory.name} is skipped: {reason} (it could not be renamed: {error})"
    return f"{directory.name} is now {aside.name}: {reason}"


def _repair_links(root: Path, directory: Path) -> None:
    """Keeps the links truthful after the checkpoints that they named have been set aside."""
    try:
        layout.point_link(root, layout.LATEST, directory)
        best = layout.read_link(root, layout.BEST)
        if best is not None and not best.is_dir():
            layout.point_link(root, layout.BEST, None)
    except OSError:
        return  # a file system that cannot be written to: every reader copes with a link to nothing
