"""The training state survives a round trip, and says when it is not one of ours."""

from __future__ import annotations

import json

import pytest

from automodel_cli.engine.checkpoint.snapshot import TrainState, read_train_state
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


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"step": -1}, "step is -1, but it must be a whole number from 0"),
        ({"step": 4}, "step is 4, and the checkpoint is of step 3"),
        ({"step": True}, "step is true"),
        ({"samples_consumed": 2**63}, "samples_consumed is 9223372036854775808, but"),
        ({"tokens_seen": 1.5}, "tokens_seen is 1.5"),
        ({"train_seconds": "long"}, "train_seconds is 'long', but it must be a number"),
        ({"tokenizer": {"name": 3}}, "tokenizer.name is 3, but it must be a text"),
        ({"stream": [1]}, "stream is a list, but it must be an object"),
    ],
)
def test_a_field_out_of_range_is_refused_with_the_file_before_anything_trains(tmp_path, change, reason):
    """With what it is and what it must be; nobody sees a step below 0."""
    path = tmp_path / "train_state.json"
    path.write_text(json.dumps({**TrainState(step=3).to_dict(), **change}))

    with pytest.raises(CheckpointError, match=reason) as caught:
        read_train_state(path, step=3)

    assert caught.value.where == str(path)


def test_a_loss_that_was_not_finite_is_none(tmp_path):
    """Earlier versions wrote `NaN`, which JSON lacks, where a validation had no finite loss."""
    path = tmp_path / "train_state.json"
    path.write_text(json.dumps(TrainState(step=3, val_loss=float("inf"), best_val_loss=float("nan")).to_dict()))

    assert TrainState.from_dict(read_train_state(path, step=3)) == TrainState(step=3)
