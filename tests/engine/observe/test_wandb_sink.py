"""Weights & Biases, offline: its own files hold the numbers and no secret, and a resumed run is the same run."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from automodel_cli import app

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
