"""The random number generators of a process, saved and restored."""

from __future__ import annotations

import random

import numpy as np
import torch

from automodel_cli.engine.train.generators import restore_rng, rng_tensors


def test_all_generators_draw_the_same_after_a_restore():
    """torch, numpy and Python continue with the very numbers that would have come."""

    def draw():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), np.random.randn(), random.random()

    np.random.randn()  # leaves half of a pair behind, which must survive too
    saved = rng_tensors()
    expected = draw()
    draw()
    restore_rng(saved)

    assert draw() == expected
