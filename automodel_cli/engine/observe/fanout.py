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
    reports are still offered (a service may come back), and `close` tells how many were lost.

    Args:
        sinks: Called in this order.
        warn: Takes the text of a warning.
    """

    def __init__(self, sinks: Sequence[Sink], warn: Callable[[str], None] = _warn_on_stderr) -> None:
        self._sinks = list(sinks)
        self._warn = warn
        self._num_lost = [0] * len(self._sinks)

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
        """Closes all, and says what was lost."""
        self._each(lambda sink: sink.close())
        for sink, num_lost in zip(self._sinks, self._num_lost, strict=True):
            if num_lost > 1:
                self._warn(f"{type(sink).__name__} lost {num_lost} reports")

    def _each(self, send: Callable[[Sink], None]) -> None:
        for index, sink in enumerate(self._sinks):
            try:
                send(sink)
            except Exception as error:  # whatever it is, the training matters more
                self._num_lost[index] += 1
                if self._num_lost[index] == 1:
                    self._warn(
                        f"{type(sink).__name__} failed ({type(error).__name__}: {error}); training goes on without it"
                    )
