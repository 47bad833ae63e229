"""`amcli verify-resume`: whether a killed run of this configuration ends as an undisturbed one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from automodel_cli.commands import columns, render
from automodel_cli.commands.options import ConfigOption, JsonOption, NprocOption, SetOption, UnsetOption
from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.load import load_config
from automodel_cli.errors import ExitCode

if TYPE_CHECKING:
    from automodel_cli.engine.train.verify_resume import Verification

_DIRECTORY = Path("verify-resume")


def verify_resume(
    config: ConfigOption = None,
    set_: SetOption = None,
    unset: UnsetOption = None,
    nproc_per_node: NprocOption = None,
    steps: Annotated[int, typer.Option("--steps", min=2, help="Length of each run.")] = 20,
    every: Annotated[int, typer.Option("--every", min=1, help="Steps between two checkpoints.")] = 5,
    kills: Annotated[int, typer.Option("--kills", min=1, help="How often the second run is killed.")] = 3,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the random moments.")] = 0,
    directory: Annotated[
        Path, typer.Option("--directory", help="Directory of both runs; must not exist.")
    ] = _DIRECTORY,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep both runs; else they are deleted if they are equal.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Prove that a killed run ends as an undisturbed one, by hash.

    Trains the configuration twice: straight through, and killed without warning at random
    moments, resumed each time. Then weights, optimizer and generators must have equal SHA-256,
    and every step the same loss. Exit code 4 if anything differs.

    \b
    Examples:
      amcli verify-resume
      amcli verify-resume -c my.yaml --steps 50 --kills 10
      amcli verify-resume -c my.yaml --nproc-per-node 8
    """
    checked(load_config(config, set_ or (), unset or ()))
    arguments = [part for path in config or () for part in ("-c", str(path))]
    arguments += [part for assignment in set_ or () for part in ("--set", assignment)]
    arguments += [part for key in unset or () for part in ("--unset", key)]
    arguments += [] if nproc_per_node is None else ["--nproc-per-node", nproc_per_node]

    from automodel_cli.engine.train.verify_resume import verify_resume as verify

    say = render.speaker(as_json=True)
    found = verify(arguments, steps=steps, every=every, kills=kills, seed=seed, directory=directory, say=say)
    if found.is_equal and not keep:
        shutil.rmtree(directory)
    if json_:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        _show(found)
    if not found.is_equal:
        raise typer.Exit(ExitCode.CHECKPOINT)


def _show(found: Verification) -> None:
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
