"""The threads of a preparation: one reads, some tokenize, one writes down, and a meter says which sets the pace.

The caller's thread takes the results in the order of the source. A chunk of documents waits for one of a fixed number
of places before it is read, so a slow writer stops the workers and the workers stop the reader; threads sleep on a
lock and never poll. Threads, not processes: the tokenizer's native code releases the interpreter's lock, and passing
tokens from process to process costs more than making them.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from automodel_cli.engine.prep.framing import Documents, join
from automodel_cli.engine.prep.reading import Unit
from automodel_cli.engine.prep.tokenizer import offsets_of

if TYPE_CHECKING:
    import pyarrow as pa


# Few documents can be long: a chunk ends at so much text too, or a place in the queue would be no bound on memory.
_CHUNK_BYTES = 2_000_000
# A reader that hangs in the network is left behind when the work is done or has failed.
_JOIN_SECONDS = 2.0

Frame = Callable[["pa.Array"], Documents]
_T = TypeVar("_T")
# Tasks of the committer that may wait.
_MAX_WAITING = 4
STAGES = ("reading", "tokenizing", "writing")


def documents_of_units(
    units: Iterator[Unit], frame: Frame, *, workers: int, chunk_documents: int, prefetch: int, meter: Meter
) -> Generator[tuple[Unit, Documents], None, None]:
    """Each unit with its documents as tokens, in order.

    Args:
        units: Iterated in a thread of its own.
        frame: From texts to documents; called in several threads at once.
        workers: Those threads.
        chunk_documents: Most documents in one call of `frame`.
        prefetch: Chunks that are read, being tokenized or waiting to be taken, in all.
        meter: Counts how busy the stages are.
    """
    conveyor = _Conveyor(units, frame, workers, chunk_documents, prefetch, meter)
    try:
        yield from conveyor.results()
    finally:
        conveyor.stop()


def chunks_of(texts: pa.Array, max_documents: int, max_bytes: int = _CHUNK_BYTES) -> Iterator[pa.Array]:
    """Cut texts into slices of at most `max_documents` and `max_bytes`; a longer text has a slice of its own."""
    offsets = offsets_of(texts)
    begin = 0
    while begin < len(texts):
        fitting = int(np.searchsorted(offsets, offsets[begin] + max_bytes, side="right")) - 1
        end = min(max(fitting, begin + 1), begin + max_documents, len(texts))
        yield texts.slice(begin, end - begin)
        begin = end


class _Conveyor:
    def __init__(
        self, units: Iterator[Unit], frame: Frame, workers: int, chunk_documents: int, prefetch: int, meter: Meter
    ) -> None:
        self._units = units
        self._frame = frame
        self._chunk_documents = chunk_documents
        self._meter = meter
        self._places = threading.Semaphore(max(prefetch, 1))
        self._stopping = threading.Event()
        # Each chunk in it holds a place, so it needs no bound of its own.
        self._queue: queue.SimpleQueue[Future[Documents] | Unit | BaseException | None] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="tokenize")
        self._reader = threading.Thread(target=self._read, name="read", daemon=True)
        self._reader.start()

    def results(self) -> Iterator[tuple[Unit, Documents]]:
        parts: list[Documents] = []
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, Unit):
                yield item, join(parts)
                parts = []
            else:
                parts.append(item.result())
                self._places.release()

    def stop(self) -> None:
        self._stopping.set()
        # The reader may be waiting for a place, and no other thread would free one now.
        self._places.release()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._reader.join(_JOIN_SECONDS)

    def _read(self) -> None:
        try:
            while not self._stopping.is_set():
                with self._meter.working("reading"):
                    unit = next(self._units, None)
                if unit is None or not self._submit(unit):
                    break
        # An exception is raised again in the caller's thread.
        except BaseException as error:
            self._queue.put(error)
        finally:
            self._queue.put(None)

    def _submit(self, unit: Unit) -> bool:
        # A unit without documents is handed on too: it may have skipped some.
        for chunk in list(chunks_of(unit.texts, self._chunk_documents)) or [unit.texts]:
            self._places.acquire()
            if self._stopping.is_set():
                return False
            self._queue.put(self._pool.submit(self._work, chunk))
        self._queue.put(unit)
        return True

    def _work(self, chunk: pa.Array) -> Documents:
        with self._meter.working("tokenizing"):
            return self._frame(chunk)


class Committer:
    """Runs what is slow and must be in order (hashing, flushing, writing progress down), in one thread.

    What a task relies on is on the disk before it runs; a task that relies on a failed one must ask for its result and
    fail with it. Few tasks may wait: a writer that is faster than the disk is stopped here.

    As a context manager it waits for the running task; tasks that have not begun are dropped when
    the body raises.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._waiting: deque[Future[Any]] = deque()

    def __enter__(self) -> Committer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=error is not None)

    def run(self, task: Callable[[], _T]) -> Future[_T]:
        """Queue a task; waits while the queue is full.

        Raises:
            Exception: Whatever an earlier task raised.
        """
        while len(self._waiting) >= _MAX_WAITING or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()
        future = self._pool.submit(task)
        self._waiting.append(future)
        return future

    def wait(self) -> None:
        """Wait until every task is done.

        Raises:
            Exception: Whatever one of them raised.
        """
        while self._waiting:
            self._waiting.popleft().result()


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
