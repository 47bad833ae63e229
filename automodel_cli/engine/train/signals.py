"""SIGINT and SIGTERM as a request to save and stop; a second one ends the process at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """A context in which the first stop signal is remembered instead of killing the process.

    Whoever does long work inside it (the loop, an evaluation) polls `requested`. Outside the
    main thread, where Python cannot install handlers, it never requests anything.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._is_agreed = False
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether the run should save and stop."""
        return self.received is not None or self._is_agreed

    def agree(self, stops: bool) -> None:
        """Takes over what the ranks have agreed on: a signal that reached one of them stops all."""
        self._is_agreed = self._is_agreed or stops

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            # Whatever hangs, a second signal must work: take the default action, which ends the process.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received = signal.Signals(number)
