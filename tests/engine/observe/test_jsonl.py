"""`metrics.jsonl` holds every report as strict JSON, at once, and no step twice."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automodel_cli.engine.observe.jsonl import JsonlSink, cut_after, read_records, read_records_backwards, step_in
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
    assert step.keys() == {"event", "time", *StepStats.__dataclass_fields__} - {"reported"}
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
            sink = JsonlSink(path, resume_at)
            for step in range(resume_at + 1, stop + 1):
                sink.on_step(stats_at(step))
            sink.close()
            reached = max(resume_at, stop)
            with path.open("ab") as file:
                file.write(b'{"event": "step", "step": ' + torn.replace(b"\n", b""))

        assert [step_in(record) for record in read_records(path)] == list(range(1, reached + 1))
        cut_after(path, reached)

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

    sink.close()
    sink = JsonlSink(path, 1)
    sink.on_step(stats_at(2, loss=1.0))

    assert [record["event"] for record in records(path)] == ["start", "step", "validation", "message", "step"]
    assert records(path)[-1]["loss"] == 1.0


def test_no_half_written_line_stays(tmp_path: Path) -> None:
    """What a killed process left at the end is cut off before the next report."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"event": "start"}\n{"event": "st')

    sink = JsonlSink(path)
    sink.on_message("next")

    assert [record["event"] for record in records(path)] == ["start", "message"]


def test_appending_keeps_the_lines_of_an_earlier_process(tmp_path: Path) -> None:
    """A new sink on the same file goes on where the last one stopped."""
    path = tmp_path / "metrics.jsonl"
    for text in ("first", "second"):
        sink = JsonlSink(path)
        sink.on_message(text)
        sink.close()

    assert [record["text"] for record in records(path)] == ["first", "second"]


def test_a_full_disk_leaves_no_half_line_and_is_recovered_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a line fits, then nothing does; once there is room, a line says how many reports are missing."""
    path, real, room = tmp_path / "metrics.jsonl", os.write, [10**6]

    def write(descriptor: int, data: memoryview) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(descriptor, data[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(os, "write", write)
    sink = JsonlSink(path)
    sink.on_step(stats_at(1))
    for step, left in ((2, 40), (3, 0)):
        room[0] = left
        with pytest.raises(OSError, match="No space left"):
            sink.on_step(stats_at(step))
        assert [record["step"] for record in records(path)] == [1]
    room[0] = 10**6

    sink.on_step(stats_at(4))

    first, note, last = records(path)
    assert (first["step"], note["text"], last["step"]) == (1, "2 reports before this one could not be written", 4)


@pytest.mark.parametrize("how", ["removed", "replaced", "directory removed"])
def test_a_file_that_is_removed_is_begun_anew(tmp_path: Path, how: str) -> None:
    """The next report is in the file that bears the name, and those that went are counted."""
    path = tmp_path / "run" / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.on_step(stats_at(1))
    path.unlink()
    if how == "replaced":
        path.touch()
    elif how == "directory removed":
        path.parent.rmdir()

    sink.on_step(stats_at(2))

    assert [record["step"] for record in records(path)] == [2]
    assert sink.num_gone == 1


LINES = st.lists(
    st.one_of(
        st.builds(lambda step: json.dumps({"event": "step", "step": step}).encode(), st.integers(0, 9)),
        st.sampled_from([b"", b"[1]", b"{", b'{"text": "\r"}', b"[" * 9000, b'{"step": ' + b"9" * 5000 + b"}"]),
        st.binary(max_size=99).map(lambda line: line.replace(b"\n", b" ")),
        st.integers(1, 70_000).map(lambda size: b" " * size),
    ),
    max_size=8,
)


@given(LINES, st.booleans())
def test_what_is_no_record_is_passed_over_from_both_ends(lines: list[bytes], is_whole: bool) -> None:
    """Both readers give the same records: the whole lines that are JSON objects, whatever stands between them."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "metrics.jsonl"
        path.write_bytes(b"".join(line + b"\n" for line in lines) + (b"" if is_whole else b'{"event": "half"}'))

        forwards, backwards = list(read_records(path)), list(read_records_backwards(path))

    assert forwards == backwards[::-1]
    assert [step for record in forwards if (step := step_in(record)) is not None] == [
        json.loads(line)["step"] for line in lines if line.startswith(b'{"event": "step"')
    ]


def test_readers_and_the_cut_read_only_what_they_need(tmp_path: Path) -> None:
    """Resuming a long run near its end looks at its end; a line of 3 MB is no record."""
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"event": "step", "step": step}).encode() for step in range(1, 50_001)]
    path.write_bytes(b"x" * 3_000_000 + b"\n" + b"\n".join(lines) + b"\n")
    read = 0

    class Counting(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            nonlocal read
            count = super().readinto(buffer) or 0
            read += count
            return count

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", lambda self, mode: io.BufferedRandom(Counting(self, mode.replace("b", ""))))
        cut_after(path, 49_990)

    assert read < 200_000
    assert [step_in(record) for record in read_records(path)] == list(range(1, 49_991))


def test_there_are_no_records_without_a_file(tmp_path: Path) -> None:
    """A run that has not begun has reported nothing."""
    assert list(read_records(tmp_path / "metrics.jsonl")) == list(read_records_backwards(tmp_path / "none")) == []
