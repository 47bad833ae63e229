"""Sends each report to several sinks, and keeps their failures away from the training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from automodel_cli.engine.observe.metrics import Sink, StepStats, ValStats


def _warn_on_stderr(text: str) -> None:
    sys.stderr.write(f"warning: {text}\n")


class Fanout:
    """A sink made of sinks.

    An exception of one never reaches the caller or the others: it is warned about once, later
    reports are still offered (a disk may have room again), and `close` says how many are missing.

    Args:
        sinks: Called in this order.
        warn: Takes the text of a warning.
    """

    def __init__(self, sinks: Sequence[Sink], warn: Callable[[str], None] = _warn_on_stderr) -> None:
        self._sinks = list(sinks)
        self._warn = warn
        self._num_missing = [0] * len(self._sinks)
        self._has_warned = [False] * len(self._sinks)

    @property
    def name(self) -> str:
        """What it is called in a message."""
        return ", ".join(sink.name for sink in self._sinks)

    @property
    def num_gone(self) -> int:
        """Reports that were lost later."""
        return sum(sink.num_gone for sink in self._sinks)

    def on_start(self, facts: dict[str, Any]) -> None:
        """Passes it on."""
        self._each(lambda sink: sink.on_start(facts))

    def on_step(self, stats: StepStats) -> None:
        """Passes it on."""
        self._each(lambda sink: sink.on_step(stats))

    def on_validation(self, stats: ValStats) -> None:
        """Passes it on."""
        self._each(lambda sink: sink.on_validation(stats))

    def on_message(self, text: str) -> None:
        """Passes it on."""
        self._each(lambda sink: sink.on_message(text))

    def close(self) -> None:
        """Closes all, and says what is missing."""
        self._each(lambda sink: sink.close(), is_report=False)
        for sink, num_missing in zip(self._sinks, self._num_missing, strict=True):
            if num_missing:
                self._warn(f"{sink.name} lacks {num_missing:,} {_reports(num_missing)} that could not be written")
            if sink.num_gone:
                self._warn(f"{sink.name} was removed, and {sink.num_gone:,} {_reports(sink.num_gone)} went with it")

    def _each(self, send: Callable[[Sink], None], *, is_report: bool = True) -> None:
        for index, sink in enumerate(self._sinks):
            try:
                send(sink)
            except Exception as error:  # whatever it is, the training matters more
                self._num_missing[index] += is_report
                if not self._has_warned[index]:
                    self._has_warned[index] = True
                    self._warn(
                        f"{sink.name} cannot be written ({type(error).__name__}: {error}); training goes on, "
                        "and every later report is tried"
                    )


def _reports(count: int) -> str:
    return "report" if count == 1 else "reports"
