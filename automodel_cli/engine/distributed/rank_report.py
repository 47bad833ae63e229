"""Why a rank ended, reported to the process that started it. Torch-free.

Each failing rank writes one JSON file. The launcher shows the first real cause once, and ends with its exit code,
which torchrun itself would turn into 1.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
import traceback
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from automodel_cli.engine.bounded import parse_json, read_bytes, typed
from automodel_cli.engine.config.secrets import masked_message
from automodel_cli.engine.distributed.environment import REPORT_DIRECTORY, RankPlace
from automodel_cli.errors import AmcliError, ExitCode, PeerFailedError

# Where torchrun looks for the reason of a failure.
_TORCHRUN_FILE = "TORCHELASTIC_ERROR_FILE"
_MAX_FRAMES = 3
_MAX_FILE_BYTES = 1_000_000
# Errors of a rank whose peer has ended: true, but never the cause.
_SYMPTOMS = ("connection closed by peer", "connection reset by peer", "broken pipe", "connection refused", "gloo")


@dataclass(frozen=True)
class RankReport:
    """Why one rank ended.

    Args:
        rank: Its number.
        host: Its machine.
        exit_code: Exit code of the same error in a process alone.
        message: The error as users read it.
        frames: The innermost frames of its traceback, for what is not an error of amcli.
        is_symptom: Whether it failed only because another rank had failed before.
        at: Time of the report, in seconds since the epoch.
    """

    rank: int
    host: str
    exit_code: int
    message: str
    frames: tuple[str, ...]
    is_symptom: bool
    at: float


def write_report(place: RankPlace, error: BaseException, message: str) -> None:
    """Writes the report of this rank; a report that cannot be written is left out."""
    is_known = isinstance(error, AmcliError)
    frames = () if is_known else tuple(_frame_line(frame) for frame in traceback.extract_tb(error.__traceback__))
    report = RankReport(
        rank=place.rank,
        host=platform.node(),
        exit_code=int(error.exit_code) if isinstance(error, AmcliError) else int(ExitCode.INTERNAL),
        message=message,
        frames=frames[-_MAX_FRAMES:],
        is_symptom=is_symptom(error),
        at=time.time(),
    )
    with contextlib.suppress(OSError):
        if directory := os.environ.get(REPORT_DIRECTORY):
            path = Path(directory) / f"attempt{place.restart_count}-rank{place.rank}.json"
            path.with_suffix(".tmp").write_text(json.dumps(asdict(report)))
            path.with_suffix(".tmp").replace(path)
        if path_of_torchrun := os.environ.get(_TORCHRUN_FILE):
            callstack = masked_message("".join(traceback.format_exception(error)))
            details = {"py_callstack": callstack, "timestamp": str(int(report.at))}
            text = {"message": {"message": f"rank {place.rank}: {message}", "extraInfo": details}}
            Path(path_of_torchrun).write_text(json.dumps(text))


def announce(place: RankPlace) -> None:
    """Writes this rank's process id for the launcher, once a forwarded signal cannot kill the process any more."""
    if directory := os.environ.get(REPORT_DIRECTORY):
        with contextlib.suppress(OSError):
            (Path(directory) / f"rank{place.rank}.pid").write_text(str(os.getpid()))


def announced(directory: Path) -> list[int]:
    """Process ids of the ranks that have called `announce`."""
    texts = [path.read_text() for path in directory.glob("rank*.pid")]
    return [int(text) for text in texts if text.isdigit()]


def is_symptom(error: BaseException) -> bool:
    """Whether an exception only says that another rank is gone."""
    if isinstance(error, PeerFailedError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(symptom in text for symptom in _SYMPTOMS)


def read_reports(directory: Path, attempt: int | None = None) -> list[RankReport]:
    """The reports of an attempt, earliest first; what cannot be read is left out.

    Args:
        directory: Where the ranks write them.
        attempt: Number of the attempt; None for the last one with a report.
    """
    reports = []
    if attempt is None:
        numbers = [_number(path.name.partition("-")[0]) for path in directory.glob("attempt*-rank*.json")]
        attempt = max(numbers, default=0)
    for path in directory.glob(f"attempt{attempt}-rank*.json"):
        with contextlib.suppress(OSError, ValueError):
            reports.append(typed(RankReport, parse_json(read_bytes(path, _MAX_FILE_BYTES))))
    return sorted(reports, key=lambda report: report.at)


def _number(name: str) -> int:
    return int("".join(filter(str.isdigit, name)))


def root_cause(reports: Iterable[RankReport]) -> RankReport | None:
    """The earliest report that is not about another rank; None if there is none.

    If rank 0 ended with the same exit code, its report is taken: all ranks had decided the same.
    """
    causes = [report for report in reports if not report.is_symptom]
    alike = [report for report in causes if report.rank == 0 and report.exit_code == causes[0].exit_code]
    return next(iter(alike or causes), None)


def _frame_line(frame: traceback.FrameSummary) -> str:
    line = f"{frame.filename}:{frame.lineno} in {frame.name}"
    return f"{line}: {frame.line}" if frame.line else line
