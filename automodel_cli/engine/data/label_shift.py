"""Where labels stand: at the input before their token, as training needs them, or at the place of the token itself.

The second form is what most data sets for Hugging Face's models hold: a copy of the inputs, which the model shifts.

Shapes: B batch, T sequence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from automodel_cli.engine.protocols import IGNORED_LABEL

Int64Array = npt.NDArray[np.int64]

# Labels that mean something else agree with the inputs by chance less often than once in so many batches.
_CERTAINTY = 1000


class LabelPlace(NamedTuple):
    """What the labels of a batch are: shifted (True), copies (False), or neither (None); and how many there are."""

    is_shifted: bool | None
    num_labels: int


def place_of_labels(input_ids: Int64Array, labels: Int64Array) -> LabelPlace | None:
    """Where the labels of a batch (B, T) stand, or None if it cannot tell.

    Both forms agree in a run of equal tokens. So an answer takes labels that all agree with one form, and so many
    that do not agree with the other that they are no accident.

    >>> ids = np.arange(20)[None]
    >>> place_of_labels(ids, ids), place_of_labels(ids, ids + 1)
    (LabelPlace(is_shifted=False, num_labels=20), LabelPlace(is_shifted=True, num_labels=20))
    >>> place_of_labels(ids * 0, ids * 0)
    """
    learnt = labels != IGNORED_LABEL
    is_copy = (labels == input_ids) | ~learnt
    is_next = (labels[:, :-1] == input_ids[:, 1:]) | ~learnt[:, :-1]
    copies, shifted = bool(is_copy.all()), bool(is_next.all())
    num_labels = int(learnt.sum())
    if not copies and not shifted:
        return LabelPlace(None, num_labels)
    # A label of k values agrees by chance once in k times, n of them once in k ** n.
    num_against = int((~(is_next if copies else is_copy[:, :-1])).sum())
    num_values = max(2, len(np.unique(labels[learnt])))
    is_certain = num_against * math.log(num_values) > math.log(_CERTAINTY)
    return LabelPlace(shifted, num_labels) if is_certain else None


def shifted_labels(batch: Mapping[str, Int64Array]) -> Int64Array:
    """Labels that stand at their own token, moved to the input before it; the last of each document has none.

    >>> shifted_labels({"labels": np.array([[5, 6, 7]])}).tolist()
    [[6, 7, -100]]
    """
    labels = np.full_like(batch["labels"], IGNORED_LABEL)
    labels[:, :-1] = batch["labels"][:, 1:]
    if "document_ids" in batch:
        documents = batch["document_ids"]
        labels[:, :-1][documents[:, 1:] != documents[:, :-1]] = IGNORED_LABEL
    elif "position_ids" in batch:
        labels[:, :-1][batch["position_ids"][:, 1:] == 0] = IGNORED_LABEL
    return labels
