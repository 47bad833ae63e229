"""Where the documents in a sample begin and end, for attention that does not look across them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]


def mark_documents(input_ids: Int64Array, bos_id: int) -> tuple[Int64Array, Int64Array]:
    """Positions that start again at each document, and numbers of the documents.

    What precedes the first BOS token of a sample is the end of a document, and counts as one.

    Args:
        input_ids: Shape (B, T).
        bos_id: Begins a document.

    Returns:
        `position_ids` (B, T), from 0 in each document, and `document_ids` (B, T), from 0 in each sample.

    >>> [found.tolist() for found in mark_documents(np.array([[5, 9, 7, 7, 9]]), bos_id=9)]
    [[[0, 0, 1, 2, 0]], [[0, 1, 1, 1, 2]]]
    """
    is_bos = input_ids == bos_id
    places = np.arange(input_ids.shape[1], dtype=np.int64)
    begins = np.maximum.accumulate(np.where(is_bos, places, 0), axis=1)
    document_ids = np.cumsum(is_bos, axis=1, dtype=np.int64)
    return places - begins, document_ids - document_ids[:, :1]
