"""The directory of a run: one run at a time writes there; remains of killed saves and old checkpoints are removed.

The lock is the kernel's, and ends with its process, however that dies. The file `.run.lock` says who holds it, for the
message that a second run gets; a file that a killed run left behind keeps no run out.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from automodel_cli.engine import durable
from automodel_cli.engine.bounded import parse_json
from automodel_cli.engine.checkpoint import layout
from automodel_cli.engine.checkpoint.manifest import examine
from automodel_cli.engine.config.suggest import on_run
from automodel_cli.errors import CheckpointError

LOCK_FILE = ".run.lock"
_ADVICE = "wait for it, stop it, or start beside it with --set checkpoint.checkpoint_dir=DIR"

# A file system without locks (some network mounts) must not prevent training.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_MAX_HOLDER_BYTES = 4096


@contextmanager
def run_lock(root: Path, *, advice: str = _ADVICE) -> Iterator[None]:
    """Keeps every other run out of a directory of checkpoints for the duration of the body.

    Args:
        root: The directory; made if need be, and removed again if nothing was put into it.
        advice: What to do where another run works there.

    Raises:
        CheckpointError: Another run holds the lock, or the directory cannot be written to.
    """
    try:
        import fcntl
    except ImportError:  # Windows; saves of one step by two runs still refuse each other there
        yield
        return
    descriptor = _acquire(root, fcntl, advice)
    try:
        yield
    finally:
        # The file is removed before the lock is released, so the next holder notices that its file is gone.
        with contextlib.suppress(OSError):
            (root / LOCK_FILE).unlink()
            root.rmdir()
        os.close(descriptor)


_MAX_ABSENCES = 100


def _acquire(root: Path, fcntl: Any, advice: str) -> int:
    """A descriptor that holds the lock on the file that bears the name at this moment."""
    path = root / LOCK_FILE
    absences = 0
    while True:
        try:
            root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except OSError as error:
            absences += 1
            # The run before may remove its empty directory in between; /proc never has a new one.
            if isinstance(error, FileNotFoundError) and absences < _MAX_ABSENCES:
                continue
            raise CheckpointError(
                f"the directory of the checkpoints cannot be written to: {error.strerror}",
                where=str(root),
                help="name a directory that can be written to: checkpoint.checkpoint_dir, or --out of `amcli import`",
            ) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise CheckpointError(f"{LOCK_FILE} is not a regular file", where=str(root), help="remove it")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                message = _held_by(descriptor)
                os.close(descriptor)
                raise CheckpointError(message, where=str(root), help=advice) from error
        if _still_bears_the_name(descriptor, path):
            break
        os.close(descriptor)
    since = datetime.now(UTC).isoformat(timespec="seconds")
    holder = {"pid": os.getpid(), "host": os.uname().nodename, "since": since}
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps(holder).encode())
    return descriptor


def _still_bears_the_name(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _held_by(descriptor: int) -> str:
    """The holder of the lock, if the file names it."""
    try:
        holder = parse_json(os.pread(descriptor, _MAX_HOLDER_BYTES, 0))
        who = f"process {int(holder['pid'])} on {str(holder['host'])[:255]!r}, since {str(holder['since'])[:40]}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another run is saving into this directory"
    return f"another run is saving into this directory: {who}"


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
    # A file that is open on a network file system cannot always be removed. That must not stop a
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
