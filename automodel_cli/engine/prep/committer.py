"""A thread of its own for what is slow and must be in order: hashing, flushing, and writing progress down.

Tasks run one after the other, so what a task relies on is on the disk before it runs; a task that
relies on a failed one must ask for its result and fail with it. Few tasks may wait: a writer that
is faster than the disk is stopped here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

_T = TypeVar("_T")
_MAX_WAITING = 4


class Committer:
    """Runs tasks in order, in one thread.

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
        """Put a task behind the others; waits while too many do.

        Raises:
            Exception: Whatever an earlier task raised.
        """
        while len(self._waiting) >= _MAX_WAITING or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()
        future = self._pool.submit(task)
        self._waiting.append(future)
        return future

    def wait(self) -> None:
        """Until every task is done.

        Raises:
            Exception: Whatever one of them raised.
        """
        while self._waiting:
            self._waiting.popleft().result()
