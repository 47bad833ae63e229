"""One hash that tells whether files are what they were.

Small files are hashed whole. Of a large one the size and evenly spaced stretches are hashed, the
first and the last among them: reading a terabyte twice to prepare a part of it would be no
service. A change that keeps the size and lies between the stretches is not noticed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from automodel_cli.engine.prep.corpus.streams import InputFile

_WHOLE_BYTES = 1 << 26
_NUM_STRETCHES = 64
_STRETCH_BYTES = 1 << 16


def fingerprint(files: Iterable[InputFile], names: Iterable[str]) -> str:
    """SHA-256 of the names and contents of files, in their order."""
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
