"""How `verify-resume` shows what it found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from automodel_cli.commands import columns

if TYPE_CHECKING:
    from automodel_cli.engine.train.verify_resume import Verification


def verification(found: Verification) -> None:
    """The kills, the hashes of both runs side by side, and the verdict."""
    for number, kill in enumerate(found.kills, start=1):
        typer.echo(
            f"kill {number}: after step {kill.after_step}, went on from step {kill.resumed_from}, "
            f"{kill.steps_lost} steps trained again"
        )
    hashes = found.hashes.items()
    rows = [(name, old[:16], new[:16], "equal" if old == new else "DIFFERENT") for name, (old, new) in hashes]
    columns.show(rows, first_to_go=(2, 1))
    for step in found.different_steps:
        typer.echo(f"step {step}: the reports of both runs differ")
    for key in found.state_differs:
        typer.echo(f"training state: {key} differs")
    kills = f"{len(found.kills)} kills (seed {found.seed})"
    typer.echo(f"{'EQUAL' if found.is_equal else 'DIFFERENT'}: {found.steps} steps, {kills}")
