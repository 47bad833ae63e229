"""Files that either stand complete under their name or do not stand there at all.

A file is written under a hidden temporary name beside its target, flushed to the disk and
then renamed. It is never written through a memory map, where a full disk is a bus error that
ends the process; here it is an `OSError`, which becomes a `DataError`.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from automodel_cli.engine.durable import sync_directory, write_bytes
from automodel_cli.errors import DataError


def temporary_path(path: Path) -> Path:
    """The hidden name under which `path` is written.

    >>> temporary_path(Path("data/train_000000.bin")).name
    '.train_000000.bin.tmp'
    """
    return path.with_name(f".{path.name}.tmp")


def replace_durably(path: Path) -> None:
    """Move the finished temporary file of `path` into place and flush the directory."""
    temporary_path(path).replace(path)
    sync_directory(path.parent)


def write_durably(path: Path, content: bytes) -> None:
    """Write a whole file; afterwards `path` holds all of `content`, or what it held before.

    Raises:
        DataError: The file cannot be written.
    """
    with explain_write_errors(path):
        write_bytes(temporary_path(path), content)
        replace_durably(path)


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` in the body into a `DataError` about writing `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free_bytes = shutil.disk_usage(path.parent).free
            raise DataError(
                f"the disk is full: {free_bytes:,} bytes are free",
                where=str(path),
                help="free some space or choose another --output-dir, then run the command again",
            ) from error
        raise DataError(f"the file cannot be written: {error.strerror or error}", where=str(path)) from error
