"""Order in a run's directory: debris of killed saves goes, broken checkpoints step aside, old ones make room."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from automodel_cli.engine import durable
from automodel_cli.engine.checkpoint import layout
from automodel_cli.engine.checkpoint.manifest import examine
from automodel_cli.engine.config.suggest import on_run
from automodel_cli.errors import CheckpointError


def clear_debris(root: Path) -> None:
    """Removes what killed saves have left under hidden names; that of living processes stays."""
    for path in root.iterdir():
        owner = layout.partial_owner(path.name)
        if owner is None or (owner != os.getpid() and _is_alive(owner)):
            continue
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)
        else:
            path.unlink()


def remove_tree(path: Path) -> None:
    """Removes a hidden directory as far as that is possible."""
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


def make_way(final: Path) -> None:
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
            f"`{on_run('resume', final.parent)}`",
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
            remove_tree(doomed)
