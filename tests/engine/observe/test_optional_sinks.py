"""Weights & Biases, offline: its own files hold the numbers and no secret, and a resumed run is the same run."""

from __future__ import annotations

import errno
import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from automodel_cli import app
from automodel_cli.engine.observe.metrics import StepStats
from automodel_cli.engine.observe.optional_sinks import TensorBoardSink

wandb = pytest.importorskip("wandb")
CANARY = "CANARYd41d8cd98f"
LOSS = """
from automodel_cli.engine.loss.masked_ce import MaskedCrossEntropy

class WithAccess(MaskedCrossEntropy):
    def __init__(self, api_key=None):
        super().__init__()
"""


@pytest.fixture
def reporting(tiny_run, monkeypatch):
    """The tiny run with reports to files, and a secret in its configuration and on its command line."""
    monkeypatch.setenv("WANDB_API_KEY", CANARY * 3)
    monkeypatch.setenv("WANDB_SILENT", "true")
    # wandb puts functions of its own in their place, for as long as the process lives.
    monkeypatch.setattr(sys, "exit", sys.exit)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    (tiny_run.parent / "access.py").write_text(LOSS)
    extra = "loss_fn: {_target_: 'access.py:WithAccess', api_key: '${WANDB_API_KEY}'}\n"
    tiny_run.write_text(tiny_run.read_text() + extra + "wandb: {project: tests, mode: offline}\n")
    return tiny_run


def offline_runs() -> list[Path]:
    return sorted(Path("checkpoints/wandb").glob("offline-run-*"))


def records(path: Path) -> Iterator[bytes]:
    """The records of a `.wandb` file: LevelDB's log format after a header of 7 bytes."""
    data, position, whole = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        room = 32768 - position % 32768
        if room < 7:  # a record's header never crosses a block
            position += room
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last of several parts
            yield whole
            whole = b""


def history(directory: Path) -> list[dict[str, float]]:
    """What wandb would send of a run."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for data in records(next(directory.glob("*.wandb"))):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in items})
    return rows


def test_a_run_writes_its_numbers_offline_without_any_secret_and_a_resume_continues_it(reporting, monkeypatch):
    """Every step once, validations too; the same run id; the canary stands in no byte of any file."""
    secret = ["--set", f"loss_fn.api_key={CANARY}"]
    monkeypatch.setattr("sys.argv", ["amcli", "pretrain", *secret])
    assert app.run(["pretrain", "-c", str(reporting), *secret]) == 0
    assert app.run(["resume", "-c", str(reporting), *secret, "--set", "step_scheduler.max_steps=8"]) == 0

    first, second = offline_runs()
    begun, resumed = history(first), history(second)
    steps = [row["step"] for row in begun if "loss" in row], [row["step"] for row in resumed if "loss" in row]
    assert steps == ([1, 2, 3, 4, 5, 6], [7, 8])
    logged = [json.loads(line) for line in Path("checkpoints/metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in begun + resumed if "loss" in row] == [
        record["loss"] for record in logged if record["event"] == "step"
    ]
    assert [row["step"] for row in begun if "val_loss" in row] == [3, 6]
    run_ids = {record["facts"]["run_id"] for record in logged if record["event"] == "start"}
    assert run_ids == {first.name.rpartition("-")[2]} == {second.name.rpartition("-")[2]}
    written = [path for path in Path("checkpoints").rglob("*") if path.is_file()]
    assert not [path for path in written if CANARY.encode() in path.read_bytes()]


def test_a_service_that_fails_is_warned_about_once_and_training_goes_on(reporting, monkeypatch, capsys):
    """The run ends with its checkpoints and its metrics.jsonl."""

    def refuse(**_: object) -> None:
        raise ConnectionError("the service is gone")

    monkeypatch.setattr(wandb, "init", refuse)

    assert app.run(["pretrain", "-c", str(reporting)]) == 0

    said = capsys.readouterr().err
    assert said.count("the service is gone") == 1
    assert "wandb lacks 9 reports" in said
    assert Path("checkpoints/LATEST").exists()


@pytest.mark.parametrize("service", ["wandb", "tensorboard"])
def test_a_service_that_is_not_installed_is_refused_before_anything_runs(tiny_run, monkeypatch, capsys, service):
    """With the command that installs it; switched off, it needs nothing."""
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == service else find(name, *rest))

    assert app.run(["pretrain", "-c", str(tiny_run), "--set", f"{service}.enabled=true"]) == 2
    assert f"pip install 'amcli[{service}]'" in capsys.readouterr().err
    assert not Path("checkpoints").exists()
    assert app.run(["config", "show", "-c", str(tiny_run), "--check", "--set", f"{service}.enabled=false"]) == 0


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
