"""Asks before something is deleted, where there is somebody to ask."""

from __future__ import annotations

import sys

import typer


def ask(what: str, *, yes: bool) -> None:
    """Asks on a terminal whether to go on; a script has said so by the option that brought it here.

    Args:
        what: What will be lost, as the beginning of a question: `delete the run in checkpoints`.
        yes: The answer was given with `--yes`.

    Raises:
        typer.Abort: The answer is no.
    """
    if not yes and sys.stdin.isatty() and sys.stderr.isatty():
        typer.confirm(f"{what}?", abort=True, err=True)
