"""Requests from outside: stop signals and a time limit save and stop, SIGUSR1 saves and goes on.

SIGHUP and SIGQUIT stay ignored where the parent process ignored them, as `nohup` does. Requests are
noticed between steps, inside a validation and while data is waited for; whatever else is being done is finished
first. A second stop signal ends the process at once, unless it is SIGHUP: a terminal that is closed sends it twice,
once by the kernel and once by the shell.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from automodel_cli import terminal
from automodel_cli.engine.distributed.environment import stop_signals

# Windows has none.
SAVE_SIGNAL: signal.Signals | None = getattr(signal, "SIGUSR1", None)


class StoppedWaitingError(BaseException):
    """A stop request cut a wait short; no `Exception`, so that no dataset takes it for one of its own."""


class StopSignal:
    """A context in which the first stop signal is remembered instead of killing the process.

    Long work inside it (the loop, an evaluation) polls `requested`. Outside the
    main thread, where Python cannot install handlers, only the time limit requests anything.

    Args:
        stop_at: Moment of `time.monotonic()` from which a stop is requested; None for no limit.
    """

    def __init__(self, stop_at: float | None = None) -> None:
        self.received: signal.Signals | None = None
        self._stop_at = stop_at
        self._is_agreed = False
        self._save_wanted = False
        self._save_agreed = False
        self._is_waiting = False
        self._alarm: threading.Timer | None = None
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether the run should save and stop."""
        return self.received is not None or self._is_agreed or self._time_is_up()

    @property
    def save_requested(self) -> bool:
        """Whether this process has been asked to save and go on."""
        return self._save_wanted

    @property
    def reason(self) -> str:
        """Why a stop is requested, as the beginning of a sentence."""
        if self.received is not None:
            return f"{self.received.name} received"
        return "--max-time is up" if self._time_is_up() else "a stop was requested at another rank"

    def agree(self, stops: bool, saves: bool = False) -> None:
        """Takes over what the ranks have agreed on: a request that reached one of them is for all."""
        self._is_agreed = self._is_agreed or stops
        self._save_agreed = saves
        if saves:
            # One that comes at this very moment is answered by the save that follows.
            self._save_wanted = False

    @property
    def save_agreed(self) -> bool:
        """Whether the ranks, or this process alone, now save and go on."""
        return self._save_agreed

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A wait that a stop request may cut short, now or when it comes.

        Raises:
            StoppedWaitingError: A stop is requested.
        """
        self._is_waiting = True
        try:
            # After the flag is set: a request just before it would otherwise wait for the data.
            if self.requested:
                raise StoppedWaitingError
            yield
        finally:
            self._is_waiting = False

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            numbers = [*stop_signals(), *([] if SAVE_SIGNAL is None else [SAVE_SIGNAL])]
            self._previous = {number: signal.signal(number, self._on_signal) for number in numbers}
            if self._stop_at is not None and SAVE_SIGNAL is not None:
                seconds = min(max(0.0, self._stop_at - time.monotonic()), threading.TIMEOUT_MAX)
                self._alarm = threading.Timer(seconds, self._wake)
                self._alarm.daemon = True
                self._alarm.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            # It may be about to raise its signal, which must still find our handler.
            self._alarm.join()
        for number, handler in self._previous.items():
            # The terminal that is closing must not cut short what follows a stop, such as a report to a service.
            is_over = number.name == "SIGHUP" and self.received is not None
            signal.signal(number, signal.SIG_IGN if is_over else handler)

    def _time_is_up(self) -> bool:
        return self._stop_at is not None and time.monotonic() >= self._stop_at

    @staticmethod
    def _wake() -> None:
        """Interrupts what the main thread waits for: only a signal does, and this one asks for a save in any case."""
        if SAVE_SIGNAL is not None and (thread := threading.main_thread().ident) is not None:
            signal.pthread_kill(thread, SAVE_SIGNAL)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == SAVE_SIGNAL:
            self._save_wanted = True
        elif self.received is None:
            self.received = signal.Signals(number)
            terminal.hurry()
        elif signal.Signals(number).name != "SIGHUP":
            # Whatever hangs, a second signal must work: take the default action, which ends the process.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if self._is_waiting and self.requested:
            self._is_waiting = False
            raise StoppedWaitingError


@contextmanager
def save_requests_ignored() -> Iterator[None]:
    """Keeps SIGUSR1, which by default ends a process, from ending a run that has nothing to save yet."""
    if SAVE_SIGNAL is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(SAVE_SIGNAL, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(SAVE_SIGNAL, previous)
