"""Option types that several commands share, and the seed form of overrides, `--model.n_layer 24`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand

from automodel_cli.commands import complete, config_paths
from automodel_cli.errors import UsageError

ConfigOption = Annotated[
    list[Path] | None,
    typer.Option(
        "-c",
        "--config",
        help="YAML file, checkpoint or run; given several times, later ones win.",
        show_default=False,
        callback=config_paths.meant,
        autocompletion=complete.config_files,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override one value, as often as wanted.",
        show_default=False,
        autocompletion=complete.assignments,
    ),
]
UnsetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--unset",
        metavar="KEY",
        help="Take a key out, as often as wanted.",
        show_default=False,
        autocompletion=complete.keys,
    ),
]
CheckpointArgument = Annotated[
    Path | None,
    typer.Argument(
        help="A checkpoint or a run's directory; without it, checkpoints/LATEST.",
        show_default=False,
        autocompletion=complete.checkpoints,
    ),
]
TrustOption = Annotated[
    bool, typer.Option("--trust-config", help="Run code that a checkpoint's own configuration names.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


class OverridableCommand(TyperCommand):
    """A command that reads `--a.b.c value` and `--a.b.c=value` as `--set a.b.c=value`.

    Before Typer looks at the line: it would take the value of an option that it does not know for an argument.
    """

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # ours is its own
        """Parses the line with every override in its first form."""
        return super().parse_args(ctx, with_set_options(args, is_complete=not ctx.resilient_parsing))


def with_set_options(args: list[str], *, is_complete: bool = True) -> list[str]:
    """The arguments with dotted options as `--set`; all others as they are.

    Args:
        args: Of one command.
        is_complete: False while the line is still being typed: then a value may be missing.

    Raises:
        UsageError: A dotted option of a complete line has no value.

    >>> with_set_options(["ckpt", "--model.n_layer", "24", "--optimizer.lr=1e-3"])
    ['ckpt', '--set', 'model.n_layer=24', '--set', 'optimizer.lr=1e-3']
    """
    found: list[str] = []
    rest = list(args)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.removeprefix("--").partition("=")
        if argument == "--":
            return [*found, argument, *rest]
        if not argument.startswith("--") or "." not in name:
            found.append(argument)
            continue
        if not equals:
            if not rest or rest[0].startswith("--"):
                if is_complete:
                    raise UsageError(f"`{argument}` needs a value", help=f"{argument} VALUE, or --set {name}=VALUE")
                continue
            value = rest.pop(0)
        found += ["--set", f"{name}={value}"]
    return found
