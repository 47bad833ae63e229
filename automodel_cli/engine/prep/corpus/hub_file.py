"""A file on the hub, read by ranges of bytes as if it were a local file; a range that failed is asked for again.

The content belongs to one commit and never changes, so a range can be asked for at any time. Nothing is stored; one
stretch is held in memory. Waits between tries become longer, and end with a budget of seconds.
"""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from automodel_cli.engine.config.secrets import masked_message
from automodel_cli.errors import DataError

_Result = TypeVar("_Result")

_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0
_READ_AHEAD_BYTES = 1 << 23
# Reading small columns between two chunks of the text is cheaper than a request more.
_NEAR_BYTES = 1 << 20
_TIMEOUT_S = 30.0
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})


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
    """A budget for tries of one request; every success begins a new one.

    Attributes:
        seconds: After the first failure, tries go on for as long.
        on_wait: Called before every wait with what happened and how long it takes.
        sleep: Takes seconds.
        clock: Monotonic, in seconds.
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


class RangeFile(io.RawIOBase):
    """A file behind a URL.

    Args:
        url: Its place.
        name: What messages call it.
        num_bytes: Its size.
        retry: How often a range is asked for.
    """

    def __init__(self, url: str, name: str, num_bytes: int, retry: Retry) -> None:
        self._url = url
        self._name = name
        self._num_bytes = num_bytes
        self._retry = retry
        self._at = 0
        self._held = b""
        self._held_from = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte; asks for nothing."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._num_bytes}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Exactly `size` bytes, or fewer at the end.

        Raises:
            DataError: The server refuses, or the connection is lost for longer than is tried.
        """
        end = self._num_bytes if size < 0 else min(self._at + size, self._num_bytes)
        parts = []
        while self._at < end:
            offset = self._at - self._held_from
            if not 0 <= offset < len(self._held):
                self._hold(self._at, end)
                offset = 0
            part = self._held[offset : offset + end - self._at]
            parts.append(part)
            self._at += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _hold(self, start: int, end: int) -> None:
        """Ask for a range, and for more where reading goes forward."""
        beyond = start - (self._held_from + len(self._held))
        if 0 <= beyond <= _NEAR_BYTES:
            end = min(max(end, start + _READ_AHEAD_BYTES), self._num_bytes)
        self._held = self._retry.run(lambda: self._fetch(start, end), self._name)
        self._held_from = start

    def _fetch(self, start: int, end: int) -> bytes:
        from huggingface_hub.utils import build_hf_headers, get_session

        # A compressed answer would count other bytes than those of the file.
        headers = {**build_hf_headers(), "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        try:
            response: Any = get_session().get(self._url, headers=headers, timeout=_TIMEOUT_S)
            status, content = int(response.status_code), bytes(response.content)
        # The exceptions of the client's releases have no other common class.
        except Exception as error:
            raise TransientError(str(error) or type(error).__name__) from error
        if status in _BUSY:
            raise TransientError(f"the server answers {status}", retry_after_s(response.headers))
        if status != 206 and not (status == 200 and len(content) == end - start):
            raise DataError(
                f"the server answers {status} to a request for bytes {start:,} to {end:,}", where=self._name
            )
        if len(content) != end - start:
            raise TransientError(f"the connection broke after {len(content):,} of {end - start:,} bytes")
        return content


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that an answer asks to wait; `None` when it does not, or names a date.

    >>> retry_after_s({"Retry-After": "7"}), retry_after_s({})
    (7.0, None)
    """
    value = headers.get("Retry-After") or headers.get("retry-after") or ""
    return float(value) if value.isdecimal() else None
