"""How busy each stage of preparation is, and so which of them sets the pace."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

STAGES = ("reading", "tokenizing", "writing")


class Meter:
    """Seconds of work by stage, added from any thread.

    Args:
        workers: Threads that tokenize; the other stages have one each.
    """

    def __init__(self, workers: int) -> None:
        self._lock = threading.Lock()
        self._threads = dict(zip(STAGES, (1, workers, 1), strict=True))
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._active = dict.fromkeys(STAGES, 0)
        self._begin = time.perf_counter()

    @contextmanager
    def working(self, stage: str) -> Iterator[None]:
        """Counts the time of the body for a stage."""
        begin = time.perf_counter()
        with self._lock:
            self._active[stage] += 1
        try:
            yield
        finally:
            with self._lock:
                self._active[stage] -= 1
                self._seconds[stage] += time.perf_counter() - begin

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self._begin

    @property
    def workers_busy(self) -> int:
        """Threads that tokenize at this moment."""
        return self._active["tokenizing"]

    def shares(self) -> dict[str, float]:
        """The part of its time that each stage worked, 0 to 1."""
        elapsed = max(self.seconds, 1e-9)
        return {stage: min(1.0, self._seconds[stage] / (elapsed * self._threads[stage])) for stage in STAGES}

    def limit(self) -> str:
        """The stage that works most of its time: making it faster makes all of it faster."""
        shares = self.shares()
        return max(STAGES, key=lambda stage: shares[stage])
