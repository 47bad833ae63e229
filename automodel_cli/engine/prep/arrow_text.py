"""Texts as Arrow holds them: one buffer of UTF-8 and offsets, seen from numpy without a copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa


def offsets_of(texts: pa.Array) -> npt.NDArray[np.int64]:
    """Where each text begins in the array's data buffer, and where the last one ends: shape (texts + 1,).

    Args:
        texts: `string` or `large_string`, without nulls.
    """
    wide = str(texts.type).startswith("large_")
    buffer = texts.buffers()[1]
    # An array without texts may come without a buffer of offsets.
    if buffer is None or not len(texts):
        return np.zeros(1, dtype=np.int64)
    offsets = np.frombuffer(buffer, dtype=np.int64 if wide else np.int32, count=texts.offset + len(texts) + 1)
    return offsets[texts.offset :].astype(np.int64)


def utf8_of(texts: pa.Array) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """All bytes of the texts, shape (n,), and the offsets of the texts in them, shape (texts + 1,)."""
    offsets = offsets_of(texts)
    data = texts.buffers()[2]
    if data is None:
        return np.empty(0, dtype=np.uint8), offsets
    content = np.frombuffer(data, dtype=np.uint8)[offsets[0] : offsets[-1]]
    return content, offsets - offsets[0]
