"""TensorBoard: its own reader finds every number of the run."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from automodel_cli import app
from automodel_cli.engine.observe.metrics import StepStats
from automodel_cli.engine.observe.tensorboard_sink import TensorBoardSink

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


def test_a_full_disk_and_a_removed_file_cost_only_their_own_points(tmp_path, monkeypatch):
    """No thread of a library ends with a traceback, and no half record stays that readers would stop at."""
    real, is_full = os.write, False

    def write(descriptor, data):
        if is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    sink = TensorBoardSink(tmp_path / "board")
    sink.on_start({})
    sink.on_step(stats_at(1))
    (path,) = (tmp_path / "board").iterdir()
    path.unlink()
    sink.on_step(stats_at(2))
    is_full = True
    with pytest.raises(OSError, match="No space left"):
        sink.on_step(stats_at(3))
    is_full = False

    sink.on_step(stats_at(4))

    events = accumulator.EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    assert [event.step for event in events.Tensors("loss")] == [2, 4]
    assert sink.num_gone == 1


def stats_at(step: int) -> StepStats:
    """The report of a step."""
    return StepStats(step, 9, 2.5, 0.5, 1e-3, 1000.0, 0.1, 10**9, step * 100, 0.0)
