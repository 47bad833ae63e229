"""Tries again what a network or a busy server let fail: later and later, and not for ever."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from automodel_cli.engine.config.secrets import masked_message
from automodel_cli.errors import DataError

_Result = TypeVar("_Result")

_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0


class TransientError(Exception):
    """A failure that may be gone at the next try.

    Args:
        reason: What happened.
        retry_after_s: How long the server asks to wait, if it says so.
    """

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Retry:
    """A budget for tries of one thing; every success begins a new one.

    Attributes:
        seconds: After the first failure, tries go on for as long.
        on_wait: Told before every wait what happened and how long it takes.
        sleep: Waits so many seconds.
        clock: Seconds that only grow.
    """

    seconds: float
    on_wait: Callable[[str], None]
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def run(self, attempt: Callable[[], _Result], where: str) -> _Result:
        """The result of the first try that succeeds.

        Args:
            attempt: Raises `TransientError` when it shall be tried again.
            where: What is being read, for messages.

        Raises:
            DataError: The budget is used up.
        """
        failed_at: float | None = None
        longest = _FIRST_WAIT_S
        while True:
            try:
                return attempt()
            except TransientError as error:
                now = self.clock()
                failed_at = now if failed_at is None else failed_at
                left = failed_at + self.seconds - now
                if left <= 0:
                    raise DataError(
                        f"no connection for {self.seconds:g} s: {error}",
                        where=where,
                        help="nothing is lost: the same command continues where this one stopped",
                    ) from error
                # Jitter, or all the tasks of a job that one outage stopped would come back at once.
                wait = longest * random.uniform(0.5, 1.0)
                wait = min(max(wait, error.retry_after_s or 0.0), left)
                longest = min(2 * longest, _LONGEST_WAIT_S)
                self.on_wait(masked_message(f"{where}: {error}; trying again in {wait:.1f} s"))
                self.sleep(wait)
