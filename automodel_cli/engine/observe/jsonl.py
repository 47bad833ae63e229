"""`metrics.jsonl`: every report as one JSON object per line, on its way to the disk at once.

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
ended, never continued.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from automodel_cli.engine.observe.metrics import StepStats, ValStats


class JsonlSink:
    """Appends reports to a file; see the top of this module for the keys.

    Args:
        path: The file; it and its directory are made if need be.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        # Line buffering: after each line the bytes are the operating system's, so that they
        # survive the death of this process.
        self._file = path.open("a", encoding="utf-8", buffering=1, newline="\n")
        if path.stat().st_size and not _ends_line(path):
            self._file.write("\n")

    def truncate_after(self, step: int) -> None:
        """Cuts the file before its first report of a later step, so that no step stands twice after a resume."""
        keep_bytes = position = 0
        with self._path.open("rb") as file:
            for line in file:
                position += len(line)
                found = _step_in(line)
                if found is not None and found > step:
                    break
                if found is not None or _is_object(line):
                    keep_bytes = position
        # The file is open for appending, so the next line goes to the new end.
        self._file.truncate(keep_bytes)

    def on_start(self, facts: dict[str, Any]) -> None:
        """Writes a `start` line."""
        self._write("start", facts=facts)

    def on_step(self, stats: StepStats) -> None:
        """Writes a `step` line."""
        self._write("step", **asdict(stats))

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
        record = _finite({"event": event, "time": round(time.time(), 3), **fields})
        self._file.write(json.dumps(record, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """The same value with null for every number that JSON cannot write."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _ends_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _is_object(line: bytes) -> bool:
    return isinstance(_parsed(line), dict)


def _step_in(line: bytes) -> int | None:
    record = _parsed(line)
    step = record.get("step") if isinstance(record, dict) else None
    return step if isinstance(step, int) else None
