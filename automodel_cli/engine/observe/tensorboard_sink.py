"""Reports to TensorBoard: event files that `tensorboard --logdir DIR` shows."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from automodel_cli.engine.observe.metrics import StepStats, ValStats, scalars


class TensorBoardSink:
    """Writes every number of a step under its name in `metrics.jsonl`.

    Args:
        directory: Of the event files; a resumed run adds a file, and TensorBoard shows them as one curve.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer: Any = None

    def on_start(self, facts: dict[str, Any]) -> None:
        """Opens the file; raises what tensorboard raises."""
        # Imported with the first report, as a refused run needs none of it.
        from tensorboard.summary import Writer

        self._writer = Writer(str(self._directory))

    def on_step(self, stats: StepStats) -> None:
        """Writes the numbers of a step."""
        self._write(stats.step, scalars(asdict(stats)))

    def on_validation(self, stats: ValStats) -> None:
        """Writes a validation, and makes sure that it can be seen."""
        self._write(stats.step, scalars(stats.flat()))
        self._writer.flush()

    def on_message(self, text: str) -> None:
        """Nothing: a message is no number."""

    def close(self) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()

    def _write(self, step: int, numbers: dict[str, float]) -> None:
        if self._writer is None:
            raise RuntimeError("tensorboard did not start")
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)
