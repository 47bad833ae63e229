"""The one writer to the terminal: all of standard output and standard error passes through here.

A terminal may disappear during a run; so may `tee`, the reader of a pipe, or the space for a log file. Then output that
cannot be written is dropped: no write raises, so training goes on, saves, and ends with its own exit code.
Only a command whose work is to print ends when its output is lost (`OutputLostError`).
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

if TYPE_CHECKING:
    from typing_extensions import Buffer

# There is no space for a file at present: the next line is tried again. Any other failure is final.
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ETIMEDOUT)
_PATIENCE_MILLISECONDS = 500

_PRINTED_AS_BYTES = "amcli"
_goes_on = False
_is_ending = False


class OutputLostError(BaseException):
    """The output of a command whose work is to print is lost; no `Exception`, so that only `app.run` handles it.

    Args:
        reason: The error of the operating system.
    """

    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Descriptor(io.FileIO):
    """Standard output or standard error, never closed; drops what cannot be written.

    Args:
        number: 1 or 2.
        says: Called once, with a message, when output is lost.
    """

    def __init__(self, number: int, says: Callable[[str], object] = lambda text: None) -> None:
        super().__init__(number, "w", closefd=False)
        self._room = select.poll()
        self._room.register(number, select.POLLOUT)
        self._is_output = number == 1
        self._says = says
        self._is_gone = self._is_torn = self._has_said = False

    def write(self, data: Buffer, /) -> int:
        """Writes everything, or drops the rest.

        Raises:
            OutputLostError: This is standard output, and the work of the command is to print.
        """
        view = memoryview(data).cast("B")
        if not self._is_gone:
            try:
                self._write_all(view)
            except OSError as error:
                self._lost(error)
        return len(view)

    def _write_all(self, view: memoryview) -> None:
        if self._is_torn:  # ends the line that was cut off
            self._wait_for_room()
            os.write(self.fileno(), b"\n")
            self._is_torn = False
        while view:
            self._wait_for_room()
            # A pipe that is ready takes this much without blocking; more might wait for the reader.
            written = os.write(self.fileno(), view[: select.PIPE_BUF])
            self._is_torn = view[written - 1] != ord("\n")
            view = view[written:]
        self._is_torn = False

    def _wait_for_room(self) -> None:
        """Waits for a slow reader; once the process must end, only briefly, since `less` may never read on."""
        while not self._room.poll(_PATIENCE_MILLISECONDS):
            if _is_ending:
                raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    def _lost(self, error: OSError) -> None:
        ends = self._is_output and not _goes_on
        self._is_gone = ends or error.errno not in _PASSING
        if ends:
            raise OutputLostError(error)
        if not self._has_said:
            self._has_said = True
            self._says(f"warning: standard output cannot be written to ({error.strerror}); the work goes on\n")


def install(*, shows_everything: bool) -> None:
    """Puts `Descriptor` in the place of standard output and standard error; to be called before anything is written.

    Args:
        shows_everything: Print tracebacks of threads and warnings of libraries as Python does.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Closed by the caller (`>&-`): the next file that is opened would get this number, and every message.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    codecs.register_error(_PRINTED_AS_BYTES, _as_bytes_or_escaped)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stderr = _text(Descriptor(2), sys.stderr, line_buffering=True)
    sys.stdout = _text(Descriptor(1, sys.stderr.write), sys.stdout, line_buffering=False)
    if not shows_everything:
        threading.excepthook = _on_thread_error
        sys.unraisablehook = lambda failure: None  # raised by libraries that clean up at exit
        if not sys.warnoptions:
            warnings.showwarning = _show_warning


@contextmanager
def going_on_unread() -> Iterator[None]:
    """Goes on when standard output cannot be written: for commands whose work is not to print."""
    global _goes_on
    before, _goes_on = _goes_on, True
    try:
        yield
    finally:
        sys.stdout.flush()  # what user code printed, too
        _goes_on = before


def hurry() -> None:
    """Stops waiting for slow readers, since the process must end. May be called by a signal handler."""
    global _is_ending
    _is_ending = True


def quiet_libraries() -> None:
    """Drops what libraries log below the level of an error; to be called before they are imported."""
    import logging

    class Quiet(logging.getLoggerClass()):  # type: ignore[misc]
        def handle(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.ERROR or not is_of_library(record.pathname):
                super().handle(record)

    if warnings.showwarning is _show_warning:
        logging.setLoggerClass(Quiet)


@cache
def is_of_library(filename: str) -> bool:
    """Whether a source file belongs to Python, to an installed package or to amcli, and not to the user."""
    import sysconfig

    # By name: a virtual environment may take packages from another one.
    is_installed = not {"site-packages", "dist-packages"}.isdisjoint(Path(filename).parts)
    own = (str(Path(__file__).parent), sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
    return is_installed or filename.startswith(("<", *own))


def _text(raw: Descriptor, before: TextIO | None, *, line_buffering: bool) -> TextIO:
    stream = io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding="utf-8" if before is None else before.encoding,
        errors=_PRINTED_AS_BYTES if raw.fileno() == 1 else "backslashreplace",
        line_buffering=line_buffering or raw.isatty(),
        write_through=bool(getattr(before, "write_through", False)),
    )
    return cast(TextIO, stream)


def _as_bytes_or_escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    """Prints file names that are not UTF-8 as their bytes, and escapes characters that the encoding lacks."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


def _on_thread_error(failure: threading.ExceptHookArgs) -> None:
    name = failure.thread.name if failure.thread is not None else "?"
    sys.stderr.write(f"warning: the thread {name} ended ({failure.exc_type.__name__}: {failure.exc_value})\n")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Shows a warning about the user's own code in one line; warnings of libraries only with `--traceback`."""
    if not is_of_library(filename):
        sys.stderr.write(f"warning: {filename}:{lineno}: {category.__name__}: {message}\n")
