"""`metrics.jsonl` holds every report as strict JSON, at once, and no step twice."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automodel_cli.engine.observe.jsonl import JsonlSink
from automodel_cli.engine.observe.metrics import StepStats, ValStats


def stats_at(step: int, loss: float = 2.5) -> StepStats:
    return StepStats(
        step=step,
        max_steps=100,
        loss=loss,
        grad_norm=0.5,
        lr=1e-3,
        tokens_per_second=1000.0,
        step_seconds=0.1,
        memory_bytes=10**9,
        tokens_seen=step * 100,
        data_wait_seconds=0.0,
    )


def records(path: Path) -> list[dict[str, Any]]:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_each_report_is_one_line_with_the_documented_keys(tmp_path: Path) -> None:
    """Also if a text holds line breaks."""
    sink = JsonlSink(tmp_path / "new" / "metrics.jsonl")
    sink.on_start({"seed": 7})
    sink.on_step(stats_at(1))
    sink.on_validation(ValStats(1, 2.0, 7.4, 640))
    sink.on_message("two\nlines")
    sink.close()

    start, step, validation, message = records(tmp_path / "new" / "metrics.jsonl")

    assert start.keys() == {"event", "time", "facts"}
    assert step.keys() == {"event", "time", *StepStats.__dataclass_fields__}
    assert validation.keys() == {"event", "time", *ValStats(1, 2.0, 7.4, 640).flat()}
    assert (message["event"], message["text"]) == ("message", "two\nlines")


def test_lines_survive_the_death_of_the_process(tmp_path: Path) -> None:
    """A process that is killed right after a step has written that step."""
    path = tmp_path / "metrics.jsonl"
    code = (
        "import os, signal; from pathlib import Path; from automodel_cli.engine.observe.jsonl import JsonlSink;"
        f"sink = JsonlSink(Path({str(path)!r})); sink.on_message('last words'); os.kill(os.getpid(), signal.SIGKILL)"
    )

    result = subprocess.run([sys.executable, "-c", code])

    assert result.returncode == -9
    assert records(path)[0]["text"] == "last words"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_json_lacks_become_null(tmp_path: Path, value: float) -> None:
    """In a field and inside of nested facts."""
    sink = JsonlSink(tmp_path / "metrics.jsonl")

    sink.on_step(stats_at(1, loss=value))
    sink.on_start({"nested": [{"a": value}, (value, 1.5)]})

    step, start = records(tmp_path / "metrics.jsonl")
    assert step["loss"] is None
    assert start["facts"] == {"nested": [{"a": None}, [None, 1.5]]}


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.binary(max_size=20))
def test_no_step_stands_twice_after_any_resumes(stops: list[int], torn: bytes) -> None:
    """Runs that stop anywhere, die in the middle of a line and are resumed at any earlier step."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "metrics.jsonl"
        reached = 0
        for stop in stops:
            resume_at = min(reached, stop // 2)
            sink = JsonlSink(path)
            sink.truncate_after(resume_at)
            for step in range(resume_at + 1, stop + 1):
                sink.on_step(stats_at(step))
            sink.close()
            reached = max(resume_at, stop)
            with path.open("ab") as file:
                file.write(b'{"event": "step", "step": ' + torn.replace(b"\n", b""))

        sink = JsonlSink(path)
        sink.truncate_after(reached)
        sink.close()

        steps = [record["step"] for record in records(path)]
    assert steps == list(range(1, reached + 1))


def test_truncation_keeps_what_belongs_to_earlier_steps(tmp_path: Path) -> None:
    """Start, validation and messages up to the step stay; everything after the first later step goes."""
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.on_start({})
    sink.on_step(stats_at(1))
    sink.on_validation(ValStats(1, 2.0, 7.4, 640))
    sink.on_message("saved step 1")
    sink.on_step(stats_at(2))
    sink.on_message("saved step 2")

    sink.truncate_after(1)
    sink.on_step(stats_at(2, loss=1.0))

    assert [record["event"] for record in records(path)] == ["start", "step", "validation", "message", "step"]
    assert records(path)[-1]["loss"] == 1.0


def test_a_half_written_line_is_ended_and_not_continued(tmp_path: Path) -> None:
    """Without a truncation, too, the next report stands on a line of its own."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"event": "st')

    sink = JsonlSink(path)
    sink.on_message("next")

    torn, whole = path.read_text().splitlines()
    assert torn == '{"event": "st'
    assert json.loads(whole)["text"] == "next"


def test_appending_keeps_the_lines_of_an_earlier_process(tmp_path: Path) -> None:
    """A new sink on the same file goes on where the last one stopped."""
    path = tmp_path / "metrics.jsonl"
    for text in ("first", "second"):
        sink = JsonlSink(path)
        sink.on_message(text)
        sink.close()

    assert [record["text"] for record in records(path)] == ["first", "second"]
