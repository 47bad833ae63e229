"""Option types that several commands share, and the seed form of overrides, `--model.n_layer 24`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from automodel_cli.engine.config.suggest import nearest
from automodel_cli.errors import UsageError

ConfigOption = Annotated[
    list[Path] | None,
    typer.Option("-c", "--config", help="YAML file; given several times, later ones win.", show_default=False),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one value, as often as wanted.", show_default=False),
]
UnsetOption = Annotated[
    list[str] | None,
    typer.Option("--unset", metavar="KEY", help="Take a key out, as often as wanted.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def overrides(set_: list[str] | None, context: typer.Context) -> list[str]:
    """All `key=value` overrides of a command line: those of `--set`, then those of `--a.b.c value`.

    Raises:
        UsageError: An extra argument is not an override, or one has no value.
    """
    found = list(set_ or [])
    rest = list(context.args)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or "." not in name:
            raise _unknown(argument, context)
        if not equals:
            if not rest:
                raise UsageError(f"`{argument}` needs a value", help=f"{argument} VALUE, or --set {name}=VALUE")
            value = rest.pop(0)
        found.append(f"{name}={value}")
    return found


def _unknown(argument: str, context: typer.Context) -> UsageError:
    known = [option for parameter in context.command.params for option in parameter.opts]
    match = nearest(argument, known)
    kind = "option" if argument.startswith("-") else "argument"
    message = f"`{context.command_path}` takes no {kind} `{argument}`"
    suggestion = f"did you mean {match}?" if match else f"`{context.command_path} --help` shows what there is"
    return UsageError(message, help=suggestion)
