"""What every rank is doing, for the launcher that watches it: one small file per rank, mapped into memory. Torch-free.

A thread renews the time in it every second. So a process that does not run any more (stopped, frozen, stuck in the
kernel) differs from one that runs without progress. Changing the phase costs about a microsecond.
"""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import os
import platform
import re
import signal
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from automodel_cli.engine.distributed.environment import REPORT_DIRECTORY, RankPlace

# pid, step, time of the last beat, time of the last change (both of the machine's monotonic clock), phase.
_FORM = struct.Struct("=qqdd48s")
_BEAT_AT = struct.calcsize("=qq")
_NAME = re.compile(r"attempt([0-9]{1,9})-rank([0-9]{1,9})\.beat")
_SECONDS_BETWEEN_BEATS = 1.0
# Makes a rank write its stack; only the launcher sends it.
STACK_SIGNAL = signal.SIGUSR2


class Phase(StrEnum):
    """What a rank may be doing."""

    STARTING = "starting"
    BUILDING = "building the model"
    READING = "waiting for data"
    SYNCHRONISING = "waiting for the other ranks"
    TRAINING = "training"
    VALIDATING = "validating"
    SAVING = "saving"
    ENDING = "ending"
    ENDED = "ended"


@dataclass(frozen=True)
class Beat:
    """What a rank was doing when its file was read.

    Args:
        attempt: Number of restarts of all ranks before this attempt.
        rank: Number over all ranks.
        pid: Process id.
        step: Optimisation step that it works on; 0 before the first.
        phase: What it does.
        beat_age: Seconds since its last sign of life.
        phase_age: Seconds since it entered the phase.
    """

    attempt: int
    rank: int
    pid: int
    step: int
    phase: Phase
    beat_age: float
    phase_age: float

    @property
    def in_words(self) -> str:
        """Phase and step."""
        return self.phase.value + (f", step {self.step}" if self.step else "")


class _Heart:
    """The file of this process."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(_FORM.size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _FORM.size)
        self.step = 0
        self._stopped = threading.Event()
        self.enter(Phase.STARTING, 0)
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def enter(self, phase: Phase, step: int | None) -> None:
        self.step = self.step if step is None else step
        now = time.monotonic()
        _FORM.pack_into(self._map, 0, os.getpid(), self.step, now, now, phase.value.encode())

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._stopped.wait(_SECONDS_BETWEEN_BEATS):
            struct.pack_into("=d", self._map, _BEAT_AT, time.monotonic())


_heart: _Heart | None = None


@contextmanager
def beating(place: RankPlace) -> Iterator[None]:
    """Lets the launcher watch this rank during the body; without a launcher of ours it does nothing.

    After an exception the file keeps the phase in which the rank failed.
    """
    global _heart
    directory = os.environ.get(REPORT_DIRECTORY)
    if not (directory and place.is_ours):
        yield
        return
    name = f"attempt{place.restart_count}-rank{place.rank}"
    _heart = _Heart(Path(directory) / f"{name}.beat")
    with (Path(directory) / f"{name}.stack").open("w") as stacks:
        faulthandler.register(STACK_SIGNAL, file=stacks, all_threads=False)
        try:
            yield
            _heart.enter(Phase.ENDED, None)
        finally:
            faulthandler.unregister(STACK_SIGNAL)
            _heart.stop()
            _heart = None


def enter(phase: Phase, step: int | None = None) -> None:
    """States what this rank does from now on.

    Args:
        phase: What it does.
        step: The optimisation step that it works on; None leaves the last one.
    """
    if _heart is not None:
        _heart.enter(phase, step)


def read_beats(directory: Path) -> list[Beat]:
    """The ranks of the last attempt, in order; a file that cannot be read is left out."""
    found = {path: match for path in directory.iterdir() if (match := _NAME.fullmatch(path.name))}
    last = max((int(match[1]) for match in found.values()), default=0)
    beats = []
    for path, match in found.items():
        if int(match[1]) == last:
            with contextlib.suppress(OSError, ValueError, struct.error):
                pid, step, beat, since, phase = _FORM.unpack(path.read_bytes())
                now = time.monotonic()
                known = Phase(phase.rstrip(b"\0").decode())
                beats.append(Beat(last, int(match[2]), pid, step, known, now - beat, now - since))
    return sorted(beats, key=lambda beat: beat.rank)


def process_state(pid: int) -> str:
    """The state of a process as Linux names it, such as `R`, `S`, `D` or `T`; `X` for one that has ended.

    >>> process_state(os.getpid()) in "RS", process_state(2**30)
    (True, 'X')
    """
    if platform.system() == "Linux":
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return "X"
        state = text.rpartition(")")[2].split()[0]
        return "X" if state == "Z" else state
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "X"
    return "R"


def frames_of(directory: Path, beat: Beat, *, most: int = 3, wait_seconds: float = 1.0) -> tuple[str, ...]:
    """The innermost frames of a running rank, which it writes on a signal; none if it does not answer in time."""
    path = directory / f"attempt{beat.attempt}-rank{beat.rank}.stack"
    with contextlib.suppress(OSError):
        size = path.stat().st_size
        os.kill(beat.pid, STACK_SIGNAL)
        deadline = time.monotonic() + wait_seconds
        while path.stat().st_size == size and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.05)  # the rest of what it writes
        lines = path.read_text(errors="replace")[size:].splitlines()
        # Most recent first, as `File "x.py", line 3 in f`.
        return tuple(line.strip() for line in lines if line.startswith("  File "))[:most]
    return ()
