"""TensorBoard: its own reader finds every number of the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from automodel_cli import app

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def test_every_step_is_a_point_of_its_curves(tiny_run):
    """Also after a resume, whose file TensorBoard reads as the same run."""
    switch = ["--set", "tensorboard.enabled=true"]
    assert app.run(["pretrain", "-c", str(tiny_run), *switch]) == 0
    assert app.run(["resume", "--set", "step_scheduler.max_steps=8"]) == 0

    events = accumulator.EventAccumulator("checkpoints/tensorboard")
    events.Reload()

    logged = [json.loads(line) for line in Path("checkpoints/metrics.jsonl").read_text().splitlines()]
    expected = {record["step"]: record["loss"] for record in logged if record["event"] == "step"}
    assert {event.step: number(event) for event in events.Tensors("loss")} == pytest.approx(expected)
    assert [event.step for event in events.Tensors("val_loss")] == [3, 6, 8]


def number(event) -> float:
    """The number of a point."""
    from tensorboard.util import tensor_util

    return float(tensor_util.make_ndarray(event.tensor_proto))


def test_a_run_that_overwrites_another_leaves_none_of_its_points(tiny_run):
    """As it leaves none of its lines in metrics.jsonl."""
    again = ["pretrain", "-c", str(tiny_run), "--set", "tensorboard.enabled=true", "--overwrite"]
    assert app.run(again) == 0
    assert app.run(again) == 0

    assert len(list(Path("checkpoints/tensorboard").iterdir())) == 1


def test_its_directory_is_the_one_that_is_named(tiny_run):
    """Elsewhere than the checkpoints, so that one board shows many runs."""
    assert app.run(["pretrain", "-c", str(tiny_run), "--set", "tensorboard.log_dir=board/one"]) == 0

    assert list(Path("board/one").glob("events.*"))
    assert not Path("checkpoints/tensorboard").exists()
