"""Reads what preparation wrote once more, byte by byte, and fails if anything is not as its manifest says."""

from __future__ import annotations

from pathlib import Path

from automodel_cli.engine.config.suggest import command
from automodel_cli.engine.shards.verify import verify_directory
from automodel_cli.errors import DataError


def check_result(directory: Path) -> None:
    """Compare every byte of a directory with its manifest.

    Raises:
        DataError: Something differs; the first problem is named.
    """
    problems = verify_directory(directory).problems
    if problems:
        raise DataError(
            f"{problems[0].where}: {problems[0].message}",
            where=str(directory),
            help=f"`{command('data', 'verify', directory)}` lists all {len(problems)}; "
            "--overwrite makes the data again",
        )
