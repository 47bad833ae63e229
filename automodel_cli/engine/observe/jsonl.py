"""`metrics.jsonl`: every report as one JSON object per line, on its way to the disk at once; its writer and its reader.

    {"event": "start", "time": 1763863127.1, "facts": {...}}
    {"event": "step", "time": ..., "step": 120, "max_steps": 400, "loss": 2.1234, "grad_norm": 0.53,
     "lr": 0.000912, "tokens_per_second": 45123.0, "step_seconds": 0.182, "memory_bytes": 510000000,
     "tokens_seen": 491520, "data_wait_seconds": 0.001, "tokens_per_second_per_device": 45123.0,
     "mfu": null, "data_wait_share": 0.005, "seconds_left": 51.0}
    {"event": "validation", "time": ..., "step": 120, "val_loss": 2.0312, "val_perplexity": 7.62,
     "num_tokens": 81920, "val_bits_per_byte": 1.72}
    {"event": "message", "time": ..., "text": "..."}

docs/metrics.md says what each number is. `time` is in seconds since 1970 (UTC). Numbers that are
not finite stand as null, since JSON has no others. A line that a killed process left half-written is
no record: readers pass it over, and the next writer cuts it off.
"""

from __future__ import annotations

import errno
import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from automodel_cli.engine.bounded import UnsoundError, finite, open_regular
from automodel_cli.engine.observe.metrics import StepStats, ValStats
from automodel_cli.engine.observe.record_file import RecordFile

METRICS_FILE = "metrics.jsonl"

# A line takes some hundred bytes; the facts of a start may take some thousand. Longer lines are not ours.
_MAX_LINE_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 16


class JsonlSink:
    """Appends reports to a file; see the top of this module for the keys.

    Args:
        path: The file; it and its directory are made with the first report.
        start_step: Steps done before: reports of later steps are cut off, so that no step stands twice after a
            resume; None keeps all.
    """

    def __init__(self, path: Path, start_step: int | None = None) -> None:
        self.name = str(path)
        self._path, self._start_step = path, start_step
        self._file = RecordFile(path)
        self._is_cut = False
        self._num_missing = 0

    @property
    def num_gone(self) -> int:
        """Reports that went with a file that was removed."""
        return self._file.num_gone

    def on_start(self, facts: dict[str, Any]) -> None:
        """Writes a `start` line."""
        self._write("start", facts=facts)

    def on_step(self, stats: StepStats) -> None:
        """Writes a `step` line."""
        self._write("step", **stats.flat())

    def on_validation(self, stats: ValStats) -> None:
        """Writes a `validation` line."""
        self._write("validation", **stats.flat())

    def on_message(self, text: str) -> None:
        """Writes a `message` line."""
        self._write("message", text=text)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, event: str, **fields: Any) -> None:
        """Writes a line, behind one that says how many are missing before it.

        Raises:
            OSError: It could not be written, and nothing of it stays.
        """
        line = _line(event, fields)
        if self._num_missing:
            text = f"{self._num_missing} reports before this one could not be written"
            line = _line("message", {"text": text}) + line
        try:
            if not self._is_cut:
                cut_after(self._path, self._start_step)
                self._is_cut = True
            self._file.append(line)
        except OSError:
            self._num_missing += 1
            raise
        self._num_missing = 0


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file, first to last, one in memory at a time; none where there is no file.

    A line that is not whole, no JSON object or longer than any record is passed over.

    Raises:
        OSError: The file is there and cannot be read.
    """
    try:
        file = _opened(path)
    except FileNotFoundError:
        return
    with file:
        while line := file.readline(_MAX_LINE_BYTES):
            record = _record(line)
            while line and not line.endswith(b"\n"):  # the rest of a line that is too long
                line = file.readline(_MAX_LINE_BYTES)
            if record is not None:
                yield record


def read_records_backwards(path: Path) -> Iterator[dict[str, Any]]:
    """As `read_records`, from the last record to the first, reading no more of the file than is asked for."""
    try:
        file = _opened(path)
    except FileNotFoundError:
        return
    with file:
        for _, line in _lines_backwards(file):
            if (record := _record(line)) is not None:
                yield record


def cut_after(path: Path, step: int | None = None) -> None:
    """Cuts a file before its first report of a later step, and cuts off what is no record at its end.

    Steps ascend in the file, so it is read from its end, and no further than to the place of the cut.

    Args:
        path: The file; nothing is done where there is none.
        step: The last step to keep; None keeps all.

    Raises:
        OSError: It cannot be read, or not be cut.
    """
    if not path.exists():
        return
    _opened(path).close()
    with path.open("r+b") as file:
        keep = size = file.seek(0, os.SEEK_END)
        is_end = True  # nothing that is to be kept stands behind
        for begin, line in _lines_backwards(file):
            record = _record(line)
            if record is None:
                keep = begin if is_end else keep
                continue
            found = step_in(record)
            if step is None or (found is not None and found <= step):
                break
            is_end = found is not None
            keep = begin if is_end else keep
        if keep < size:
            file.truncate(keep)


def step_in(record: dict[str, Any]) -> int | None:
    """The step that a record is about; None for one that is about none."""
    step = record.get("step")
    return step if isinstance(step, int) and not isinstance(step, bool) else None


def _opened(path: Path) -> BinaryIO:
    try:
        return io.BufferedReader(open_regular(path))
    except UnsoundError as error:
        raise OSError(errno.EINVAL, str(error), str(path)) from error


def _line(event: str, fields: dict[str, Any]) -> bytes:
    record = finite({"event": event, "time": round(time.time(), 3), **fields})
    return json.dumps(record, allow_nan=False).encode() + b"\n"


def _record(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n") or len(line) > _MAX_LINE_BYTES:
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _lines_backwards(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Where each line begins, and the line with its end, last to first; one that is too long comes in pieces."""
    position, rest = file.seek(0, os.SEEK_END), b""
    while position > 0:
        size = min(_BLOCK_BYTES, position)
        position -= size
        file.seek(position)
        block = file.read(size) + rest
        end, stop = len(block), max(block.rfind(b"\n", 0, -1), -1)
        while stop >= 0:
            yield position + stop + 1, block[stop + 1 : end]
            end = stop + 1
            stop = block.rfind(b"\n", 0, stop)
        rest = block[:end]
        if len(rest) > _MAX_LINE_BYTES:
            yield position, rest
            rest = b""
    if rest:
        yield 0, rest
