"""One run per directory: a lock that the kernel frees when its process dies, however it dies.

The file `.run.lock` says who holds the lock, for the message that a second run gets. It is the lock
on it that counts: a file that a killed run left behind keeps nobody out.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from automodel_cli.engine.bounded import parse_json
from automodel_cli.errors import CheckpointError

LOCK_FILE = ".run.lock"
_ADVICE = "wait for it, stop it, or start beside it with --set checkpoint.checkpoint_dir=DIR"

# A file system without locks (some network mounts) must not keep anybody from training.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_MAX_ABSENCES = 100
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
        # The file goes before the lock, so that whoever gets the lock next sees that its file is gone.
        with contextlib.suppress(OSError):
            (root / LOCK_FILE).unlink()
            root.rmdir()
        os.close(descriptor)


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
    """Who holds the lock, as far as the file tells."""
    try:
        holder = parse_json(os.pread(descriptor, _MAX_HOLDER_BYTES, 0))
        who = f"process {int(holder['pid'])} on {str(holder['host'])[:255]!r}, since {str(holder['since'])[:40]}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another run is saving into this directory"
    return f"another run is saving into this directory: {who}"
