"""`amcli config`: what a run would use, and where every value came from."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from automodel_cli.commands.options import ConfigOption, JsonOption, SetOption, overrides
from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.emit import flat, to_yaml
from automodel_cli.engine.config.load import load_config

config_app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)


@config_app.callback()
def config() -> None:
    """Look at configurations.

    \b
    Examples:
      amcli config show
    """


@config_app.command("show", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def show(
    context: typer.Context,
    config: ConfigOption = None,
    set_: SetOption = None,
    no_origins: Annotated[bool, typer.Option("--no-origins", help="Leave out where each value came from.")] = False,
    json_: JsonOption = False,
) -> None:
    """Print the final configuration and where every value came from.

    What it prints is valid YAML. If something is wrong, it is said after that, all at once.

    \b
    Examples:
      amcli config show
      amcli config show -c base.yaml -c mine.yaml --set model.n_layer=24
      amcli config show -c checkpoints/step_000400 --no-origins > again.yaml
    """
    final = load_config(config, overrides(set_, context))
    if json_:
        origins = {key: str(origin) for key, _, origin in flat(final)}
        typer.echo(json.dumps({"config": final.values, "origins": origins}, indent=2))
    else:
        typer.echo(to_yaml(final, origins=not no_origins), nl=False)
    checked(final)
