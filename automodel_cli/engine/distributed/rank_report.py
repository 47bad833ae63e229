"""How a rank tells why it ended, to whoever started it. Torch-free.

Each failing rank leaves one JSON file; the launcher shows the first real cause once and ends with the exit
code that belongs to it, which torchrun itself would turn into 1.
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
# What a rank says whose partner has gone: true, and never the reason.
_SYMPTOMS = ("connection closed by peer", "connection reset by peer", "broken pipe", "connection refused", "gloo")


@dataclass(frozen=True)
class RankReport:
    """Why one rank ended.

    Args:
        rank: Its number.
        host: Its machine.
        exit_code: What it would have ended with alone.
        message: The error as users read it.
        frames: The innermost frames of its traceback, for what is not an error of amcli.
        is_symptom: Another rank had failed before, and this one noticed.
        at: Seconds since the epoch.
    """

    rank: int
    host: str
    exit_code: int
    message: str
    frames: tuple[str, ...]
    is_symptom: bool
    at: float


def write_report(place: RankPlace, error: BaseException, message: str) -> None:
    """Leaves the report of this rank; failing to is no second failure."""
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
    """Tells the launcher this rank's process id, once a signal that is passed on can do it no harm."""
    if directory := os.environ.get(REPORT_DIRECTORY):
        with contextlib.suppress(OSError):
            (Path(directory) / f"rank{place.rank}.pid").write_text(str(os.getpid()))


def announced(directory: Path) -> list[int]:
    """Process ids of the ranks that have announced themselves."""
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
        directory: Where the ranks leave them.
        attempt: Which one; None is the last that has any.
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

    Where rank 0 ended for the same reason, because all have agreed on it, rank 0 speaks for all.
    """
    causes = [report for report in reports if not report.is_symptom]
    alike = [report for report in causes if report.rank == 0 and report.exit_code == causes[0].exit_code]
    return next(iter(alike or causes), None)


def _frame_line(frame: traceback.FrameSummary) -> str:
    line = f"{frame.filename}:{frame.lineno} in {frame.name}"
    return f"{line}: {frame.line}" if frame.line else line
