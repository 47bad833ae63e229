"""The training state survives a round trip, and says when it is not one of ours."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

from automodel_cli.engine.train.state import TrainState, restore_rng, rng_tensors
from automodel_cli.errors import CheckpointError


def test_the_state_survives_json():
    """Every field comes back equal, floats to the last bit."""
    state = TrainState(step=3, samples_consumed=96, loss=0.1 + 0.2, tokenizer={"name": "bytes", "bos_id": 256})

    assert TrainState.from_dict(json.loads(json.dumps(state.to_dict()))) == state


@pytest.mark.parametrize("change", [{"extra": 1}, {"step": ...}])
def test_a_state_of_another_version_is_refused(change):
    """A missing or an unknown field is named."""
    values = {**TrainState().to_dict(), **change}
    values = {name: value for name, value in values.items() if value is not ...}

    with pytest.raises(CheckpointError, match=next(iter(change))):
        TrainState.from_dict(values)


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
