"""Writes that survive a power cut: each function returns once the disk has what it wrote. Texts with their own hash.

A rename is atomic but not durable until its directory is synchronised, and a file's bytes are
not on disk until the file is; forgetting either leaves an empty file after a crash. Files are never written
through a memory map, where a full disk is a bus error that ends the process; here it is an `OSError`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from automodel_cli.errors import DataError

BLANK_DIGEST = "0" * 64


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a new file and synchronises it. Readers may see it half-written: rename for that."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_file(path: Path) -> None:
    """Synchronises a file that another function wrote."""
    # fsync on a read-only descriptor fails on some systems, so this opens for update.
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Synchronises the names in a directory: what was created, renamed or removed there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directories(root: Path) -> None:
    """Synchronises every directory below `root`, children first, and `root` itself."""
    for directory, _, _ in os.walk(root, topdown=False):
        sync_directory(Path(directory))


def replace_link(link: Path, target: str) -> None:
    """Points `link` at `target`, replacing what was there in one atomic step.

    Where links are impossible (some network and removable file systems) a text file that
    holds `target` takes the place of the link.
    """
    fresh = link.with_name(f".{link.name.removeprefix('.')}.tmp-{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    try:
        fresh.symlink_to(target)
    except OSError:
        write_bytes(fresh, f"{target}\n".encode())
    fresh.replace(link)
    sync_directory(link.parent)


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


@contextlib.contextmanager
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


def sealed(text: str) -> bytes:
    """A text with its own SHA-256 in the last place where `BLANK_DIGEST` stands, and over it as it stood with that.

    A hash of the parsed values would miss changes that keep the meaning, such as 1e-05 to 1E-05.
    """
    head, _, tail = text.rpartition(BLANK_DIGEST)
    return f"{head}{hashlib.sha256(text.encode()).hexdigest()}{tail}".encode()


def is_sealed(content: bytes, digest: Any) -> bool:
    """Whether a text is as `sealed` made it, with this digest in it."""
    if not isinstance(digest, str) or len(digest) != len(BLANK_DIGEST) or not digest.isascii():
        return False
    head, found, tail = content.rpartition(digest.encode())
    blank = head + BLANK_DIGEST.encode() + tail
    return bool(found) and hashlib.sha256(blank).hexdigest() == digest
