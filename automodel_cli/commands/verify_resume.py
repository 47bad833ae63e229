"""`amcli verify-resume`: whether a killed run of this configuration ends as an undisturbed one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from automodel_cli.commands import render, render_verification
from automodel_cli.commands.options import ConfigOption, JsonOption, NprocOption, SetOption, UnsetOption
from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.load import load_config
from automodel_cli.errors import ExitCode

_DIRECTORY = Path("verify-resume")


def verify_resume(
    config: ConfigOption = None,
    set_: SetOption = None,
    unset: UnsetOption = None,
    nproc_per_node: NprocOption = None,
    steps: Annotated[int, typer.Option("--steps", min=2, help="Length of each run.")] = 20,
    every: Annotated[int, typer.Option("--every", min=1, help="Steps between two checkpoints.")] = 5,
    kills: Annotated[int, typer.Option("--kills", min=1, help="How often the second run is killed.")] = 3,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the random moments.")] = 0,
    directory: Annotated[Path, typer.Option("--directory", help="For both runs; must not exist.")] = _DIRECTORY,
    keep: Annotated[bool, typer.Option("--keep", help="Keep both runs; else they go if they are equal.")] = False,
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
        render_verification.verification(found)
    if not found.is_equal:
        raise typer.Exit(ExitCode.CHECKPOINT)
