"""`amcli inspect-ckpt`: what a checkpoint is, and whether it is whole."""

from __future__ import annotations

from typing import Annotated

import typer

from automodel_cli.commands.options import CheckpointArgument, JsonOption
from automodel_cli.errors import ExitCode


def inspect_ckpt(
    path: CheckpointArgument = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte and compare its SHA-256.")] = False,
    json_: JsonOption = False,
) -> None:
    """Say what a checkpoint is, and whether it is whole.

    Reads headers and sizes only, and never runs anything that a checkpoint contains; --verify
    also compares every byte. A run's directory gives the list of its checkpoints. The exit code
    is 4 if a checkpoint is incomplete or corrupt.

    \b
    Examples:
      amcli inspect-ckpt
      amcli inspect-ckpt checkpoints
      amcli inspect-ckpt runs/wide/BEST --verify
      amcli inspect-ckpt --json | jq .progress.val_loss
    """
    from automodel_cli.commands import render_checkpoint
    from automodel_cli.engine.checkpoint.inspect_run import look

    report = look(path, verify)
    render_checkpoint.report(report, as_json=json_)
    if not report.is_sound:
        raise typer.Exit(ExitCode.CHECKPOINT)
