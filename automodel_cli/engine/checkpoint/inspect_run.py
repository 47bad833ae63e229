"""Says what checkpoints a run's directory holds. Like `inspect.py`: no torch, and nothing is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automodel_cli.engine.checkpoint import layout
from automodel_cli.engine.checkpoint.inspect import inspect
from automodel_cli.engine.checkpoint.report import CheckpointReport
from automodel_cli.errors import CheckpointError


@dataclass(frozen=True)
class RunReport:
    """All checkpoints of a directory, by ascending step, and what is odd about the directory."""

    path: str
    checkpoints: tuple[CheckpointReport, ...]
    notes: tuple[str, ...]

    @property
    def is_sound(self) -> bool:
        """Whether every checkpoint can be used, as far as it was looked at."""
        return all(report.is_sound for report in self.checkpoints)

    def to_dict(self) -> dict[str, Any]:
        """The report as values that JSON can hold."""
        return {
            "path": self.path,
            "checkpoints": [report.to_dict() for report in self.checkpoints],
            "notes": list(self.notes),
        }


def inspect_run(root: Path, verify: bool = False) -> RunReport:
    """Reports on every checkpoint of a run's directory.

    Raises:
        CheckpointError: There is no checkpoint in it, or one cannot be read.
    """
    steps = layout.list_steps(root)
    if not steps:
        layout.resolve(root)  # raises, and says what there is instead
    notes = [
        f"{path.name}: set aside, since it was broken" for path in sorted(root.glob(f"{layout.BROKEN_PREFIX}step_*"))
    ]
    for name in layout.LINKS:
        try:
            target = layout.read_link(root, name)
        except CheckpointError as error:
            notes.append(error.message)
            continue
        if target is not None and not target.is_dir():
            notes.append(f"{name} points to {target.name}, which is gone")
    return RunReport(str(root), tuple(inspect(path, verify) for _, path in steps), tuple(notes))


def look(path: Path | None, verify: bool = False) -> CheckpointReport | RunReport:
    """Reports on what a user names: a directory of checkpoints gives the list, all else one checkpoint.

    Raises:
        CheckpointError: There is nothing to report on.
    """
    if path is not None and path.is_dir() and not layout.is_checkpoint(path) and layout.list_steps(path):
        return inspect_run(path, verify)
    return inspect(layout.resolve(path), verify)
