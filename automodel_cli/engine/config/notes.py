"""What a user should know about a configuration that passes every check."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from automodel_cli.engine.config.aliases import substitution_note
from automodel_cli.engine.config.check_targets import TargetCheck
from automodel_cli.engine.config.config import Config


def notes_on(config: Config, found: TargetCheck) -> tuple[str, ...]:
    """What stands in for what, whose code runs, and what could not be checked; one line each."""
    named = [*found.targets, str(config.get("distributed._target_")), str(config.get("dataloader.collate_fn"))]
    notes = [substitution_note(named), *_foreign_code(found.foreign), *_idle_intervals(config), *found.unchecked]
    return tuple(note for note in notes if note)


def _foreign_code(files: Mapping[Path, Sequence[str]]) -> Iterator[str]:
    """A line for each file that the targets run: what is in it may be compared with what was read or agreed on."""
    for path, targets in files.items():
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            digest = f"not known: {error.strerror}"
        yield f"{', '.join(targets)}: runs code of {path}, SHA-256 {digest}"


def _idle_intervals(config: Config) -> Iterator[str]:
    """Intervals that a run never reaches: what they ask for happens at its end, or not at all."""
    last = config.get("step_scheduler.max_steps")
    for name, what in (("val_every_steps", "validates"), ("ckpt_every_steps", "saves")):
        every = config.get(f"step_scheduler.{name}")
        if type(last) is int and type(every) is int and every > last:
            yield f"step_scheduler.{name} is {every}, beyond max_steps = {last}: the run {what} only at its end"
    if config.get("checkpoint.enabled") is False:
        yield "checkpoint.enabled is false: nothing is saved, and the run cannot be resumed"
