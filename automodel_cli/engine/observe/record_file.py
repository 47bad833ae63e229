"""A file that grows by whole records, even if its disk fills up or it is removed during the run."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


class RecordFile:
    """Appends records, each whole or not at all, so that the bytes survive the death of this process.

    Nothing is done before the first record. A file that was removed, or replaced under its name, is begun anew.

    Args:
        path: The file; it and its directory are made if need be.
        head: What an empty file begins with.

    Attributes:
        num_gone: Records of this process that went with a file that was removed.
    """

    def __init__(self, path: Path, head: bytes = b"") -> None:
        self.num_gone = 0
        self._path, self._head = path, head
        self._descriptor = -1
        self._num_here = 0
        self._whole_bytes: int | None = None

    def append(self, record: bytes) -> None:
        """Writes a record.

        Raises:
            OSError: It could not be written, and nothing of it stays; the next one is tried anew.
        """
        self._follow_the_name()
        if self._whole_bytes is not None:  # what is behind this could not be cut off at once
            os.ftruncate(self._descriptor, self._whole_bytes)
        size = self._whole_bytes = os.fstat(self._descriptor).st_size
        rest = memoryview(record if size else self._head + record)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            os.ftruncate(self._descriptor, size)
            self._whole_bytes = None
            raise
        self._whole_bytes = None
        self._num_here += bool(record)

    def close(self) -> None:
        """Closes the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _follow_the_name(self) -> None:
        if self._descriptor >= 0:
            try:
                if os.path.samestat(self._path.stat(), os.fstat(self._descriptor)):
                    return
            except FileNotFoundError:
                pass
            self.close()
            self.num_gone, self._num_here = self.num_gone + self._num_here, 0
            self._whole_bytes = None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Without waiting for the reader of a pipe, which is refused like a device.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        self._descriptor = os.open(self._path, flags, 0o666)
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            self.close()
            raise OSError(errno.EINVAL, "it is not a regular file", str(self._path))
