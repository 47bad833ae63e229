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
    begins_one = input_ids == bos_id
    begins_one[:, 0] = True
    return number_documents(np.flatnonzero(begins_one), input_ids.shape)


def number_documents(begins: Int64Array, shape: tuple[int, ...]) -> tuple[Int64Array, Int64Array]:
    """Positions and numbers of documents that lie one behind the other in rows.

    Args:
        begins: Where documents begin in the flattened rows, ascending; every row begins with one.
        shape: Of the rows, (B, T).

    Returns:
        As `mark_documents`.
    """
    num_rows, row_tokens = shape
    lengths = np.diff(begins, append=num_rows * row_tokens)
    first_of_row = np.searchsorted(begins, begins - begins % row_tokens)
    position_ids = np.arange(num_rows * row_tokens) - np.repeat(begins, lengths)
    document_ids = np.repeat(np.arange(len(begins)) - first_of_row, lengths)
    return position_ids.reshape(shape), document_ids.reshape(shape)
