"""One piece of work in a background thread, whose error is kept until the result is asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """Does one piece of work at a time; asking for its result waits for it.

    The thread is a daemon: if it waits for a dead rank, it must not keep the process alive.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    @property
    def is_over(self) -> bool:
        """Whether no work is under way."""
        return self._thread is None or not self._thread.is_alive()

    @property
    def has_failed(self) -> bool:
        """Whether the work is over and has failed."""
        return self.is_over and self._failure is not None

    def start(self, name: str, work: Callable[[], object]) -> None:
        """Begins some work when the work before it is over; an error of that, if not asked for, is dropped."""

        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._failure = error

        self.wait()
        self._failure = None
        self._thread = threading.Thread(target=run, name=name, daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> bool:
        """Waits for the work, at most `seconds`; returns whether it is over."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self.is_over

    def result(self) -> None:
        """Waits for the work, and raises its error, once."""
        self.wait()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
