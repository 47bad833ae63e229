"""Files as streams of bytes: opened by name, unpacked by ending, and read from any place on.

A file is opened anew for every reading, so a source can be read many times and from many places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_SKIP_BYTES = 1 << 22


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
