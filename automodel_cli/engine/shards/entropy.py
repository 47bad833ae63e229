"""The entropy of token frequencies: what a model that ignores all context can reach at best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def unigram_entropy_nats(counts: npt.NDArray[np.integer[Any]] | Sequence[int]) -> float:
    """Entropy of the frequencies of tokens, in nats: the loss of the best model without context.

    >>> round(unigram_entropy_nats([1, 1, 0]), 4)
    0.6931
    """
    present = np.asarray(counts, dtype=np.float64)
    present = present[present > 0]
    if not present.size:
        return 0.0
    shares = present / present.sum()
    # max: the sum for a single token is -0.0, which would be printed with its sign.
    return max(0.0, float(-(shares * np.log(shares)).sum()))
