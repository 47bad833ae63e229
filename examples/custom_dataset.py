"""A dataset of one's own: a length, and samples by number with `input_ids` and `labels` (T,).

dataset:
  _target_: examples/custom_dataset.py:Counting
  seq_len: 32

`labels[t]` is the token that follows `input_ids[t]`; the label -100 is not trained on. Because a sample is a
function of its number, amcli shuffles, resumes and spreads such a dataset over ranks by itself.
"""

from __future__ import annotations

import numpy as np


class Counting:
    """Sequences that count upwards from a random start in strides of 1, 2 or 3, which two numbers tell.

    Args:
        seq_len: Inputs per sample.
        vocab_size: The numbers are taken modulo this.
        num_samples: Samples in one epoch.
    """

    def __init__(self, seq_len: int, vocab_size: int = 257, num_samples: int = 4096) -> None:
        self.seq_len = seq_len
        self.vocab_size = vocab_size
        self.num_samples = num_samples

    def __len__(self) -> int:
        """Samples in one epoch."""
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Sample `index`, the same whenever it is asked for."""
        generator = np.random.default_rng(index)
        start, stride = generator.integers(self.vocab_size), generator.integers(1, 4)
        tokens = (start + stride * np.arange(self.seq_len + 1)) % self.vocab_size
        labels = tokens[1:].copy()
        labels[0] = -100  # the stride is known from two numbers on
        return {"input_ids": tokens[:-1], "labels": labels}
