"""What the source of a `_target_`'s callable says about its arguments. Reads source, imports nothing."""

from __future__ import annotations

from dataclasses import dataclass

from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.origin import KeyPath


@dataclass(frozen=True)
class Argument:
    """One argument: its meaning, its annotation and its default as they stand in the source."""

    meaning: str | None
    annotation: str | None
    default: str | None
    is_required: bool


@dataclass(frozen=True)
class CallableFacts:
    """A callable: the first paragraph of its docstring, where it stands, and its arguments by name."""

    summary: str | None
    place: str
    arguments: dict[str, Argument]


def arguments_of(config: Config, section: KeyPath) -> CallableFacts | None:
    """The callable of the section at `section`; None where its source cannot be found."""
    return None
