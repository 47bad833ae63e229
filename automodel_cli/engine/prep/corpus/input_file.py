"""Files as streams of bytes: opened by name, unpacked by ending, and read from any place on.

A file is opened anew for every reading, so a source can be read many times and from many places.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_SKIP_BYTES = 1 << 22
# Larger files are hashed in stretches.
_WHOLE_BYTES = 1 << 26
_NUM_STRETCHES = 64
_STRETCH_BYTES = 1 << 16


class Readable(Protocol):
    """The little of a binary file that readers need."""

    def read(self, size: int = -1, /) -> bytes:
        """Exactly `size` bytes, or fewer at the end."""
        ...


@dataclass(frozen=True)
class InputFile:
    """A file that can be opened as often as needed.

    Attributes:
        name: What messages call it; its ending says what it is.
        num_bytes: Its size as stored; `None` when it is not known.
        open: Opens it for reading bytes, at its beginning, with `seek`.
        path: Where it lies on this machine; `None` when it does not.
    """

    name: str
    num_bytes: int | None
    open: Callable[[], BinaryIO]
    path: Path | None = None

    @property
    def codec(self) -> str | None:
        """Name of the compression that its ending stands for, or `None`."""
        return CODECS.get(Path(self.name).suffix.lower())

    @property
    def ending(self) -> str:
        """Its ending in small letters, without that of a compression.

        >>> InputFile("a/b.JSONL.gz", None, lambda: None).ending
        '.jsonl'
        """
        name = Path(self.name)
        return (name.with_suffix("") if self.codec else name).suffix.lower()


def local_file(path: Path) -> InputFile:
    """A file on this machine."""
    return InputFile(str(path), path.stat().st_size, lambda: path.open("rb"), path)


@contextmanager
def unpacked(file: InputFile, offset: int = 0) -> Iterator[Readable]:
    """Open the content of a file, decompressed, from a byte of the content on.

    A compressed file is read from its beginning up to there, since it has no index.
    """
    with file.open() as raw:
        if file.codec is None:
            if offset:
                raw.seek(offset)
            yield raw
            return
        import pyarrow as pa

        with pa.CompressedInputStream(raw, file.codec) as stream:
            _skip(stream, offset)
            yield stream


def _skip(stream: Readable, num_bytes: int) -> None:
    while num_bytes > 0:
        got = len(stream.read(min(num_bytes, _SKIP_BYTES)))
        if not got:
            return
        num_bytes -= got


def read_fully(stream: Readable, size: int) -> bytes:
    """Read `size` bytes even where one call gives fewer, as a decompressor or a pipe may."""
    parts = []
    while size > 0:
        part = stream.read(size)
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def fingerprint(files: Iterable[InputFile], names: Iterable[str]) -> str:
    """SHA-256 of the names and contents of files, in their order: whether files are what they were.

    Small files are hashed whole. Of a large one the size and evenly spaced stretches are hashed, the first and the
    last among them: reading a terabyte twice to prepare a part of it would take too long. A change that keeps the
    size and lies between the stretches is not noticed.
    """
    digest = hashlib.sha256()
    for file, name in zip(files, names, strict=True):
        # A name that is not UTF-8 is hashed as the bytes that it has on the disk.
        digest.update(f"{name} {_of_file(file)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _of_file(file: InputFile) -> str:
    size = file.num_bytes or 0
    with file.open() as content:
        if size <= _WHOLE_BYTES:
            return hashlib.sha256(content.read()).hexdigest()
        digest = hashlib.sha256(f"{size} bytes, {_NUM_STRETCHES} stretches of {_STRETCH_BYTES}\n".encode())
        for stretch in range(_NUM_STRETCHES):
            content.seek((size - _STRETCH_BYTES) * stretch // (_NUM_STRETCHES - 1))
            digest.update(content.read(_STRETCH_BYTES))
        return digest.hexdigest()
