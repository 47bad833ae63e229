"""Rules of the `checkpoint` section that a type and a range cannot say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from automodel_cli.engine.config.check_layout import Refuse
from automodel_cli.engine.config.suggest import nearest

if TYPE_CHECKING:
    from automodel_cli.engine.config.check import Settings


def check_checkpoint(settings: Settings, refuse: Refuse) -> None:
    """Refuses weights to start from that are not there, and a rule for keeping that keeps nothing."""
    section = settings.checkpoint
    if section.init_from is not None:
        place = Path(section.init_from).expanduser()
        if not place.exists():
            refuse("checkpoint.init_from", f"there is no {section.init_from!r}", _beside(place))
        if section.restore_from not in (None, "LATEST"):
            message = f"init_from starts a new run, and restore_from = {section.restore_from!r} continues one"
            refuse("checkpoint.init_from", message, "leave one of them out; beside restore_from: LATEST it may stand")
    if section.keep_every_steps is not None and section.max_recent_checkpoints is None:
        message = "keep_every_steps has no effect while max_recent_checkpoints is null, which keeps all"
        refuse("checkpoint.keep_every_steps", message, "set checkpoint.max_recent_checkpoints, or leave it out")


def _beside(place: Path) -> str:
    """What lies where the path points to."""
    directory = next(parent for parent in place.absolute().parents if parent.is_dir())
    names = sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))
    match = nearest(place.name, names) if directory == place.absolute().parent else None
    shown = match or ", ".join(names[:6]) or "nothing"
    return f"in {directory} there is {shown}"
