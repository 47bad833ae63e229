"""What the paths after `-c` mean: a file or a checkpoint is itself, a run's directory is its newest checkpoint."""

from __future__ import annotations

from pathlib import Path

import typer


def meant(context: typer.Context, paths: list[Path] | None) -> list[Path] | None:
    """The paths of an option as a command gets them; those of a line that is only being completed stay."""
    return paths if context.resilient_parsing or not paths else [configuration_at(path) for path in paths]


def configuration_at(path: Path) -> Path:
    """A file, a checkpoint, or what is neither, as it is; of a directory of checkpoints, the newest.

    Raises:
        CheckpointError: The directory holds checkpoints, and none of them is complete.
    """
    if path.is_file() or (path / "config.yaml").is_file():
        return path
    from automodel_cli.engine.checkpoint.layout import LINKS, list_steps, resolve

    return resolve(path) if path.name in LINKS or list_steps(path) else path
