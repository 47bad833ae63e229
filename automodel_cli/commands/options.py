"""Options that several commands share, and overrides in the form `--model.n_layer 24`."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from automodel_cli import terminal
from automodel_cli.commands import complete
from automodel_cli.engine.distributed.launch_plan import NPROC_WORDS
from automodel_cli.errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")


def option(*names: str, help: str, complete: Callable[..., Any] | None = None, **more: Any) -> Any:
    """An option of Typer whose help page shows no default; `complete` gives the candidates for completion."""
    return typer.Option(*names, help=help, show_default=False, autocompletion=complete, **more)


def _meant(context: typer.Context, paths: list[Path] | None) -> list[Path] | None:
    """The configurations that the paths after `-c` name; unchanged while the line is being completed."""
    return paths if context.resilient_parsing or not paths else [configuration_at(path) for path in paths]


def configuration_at(path: Path) -> Path:
    """The newest checkpoint of a run's directory; any other path as it is.

    Raises:
        CheckpointError: The directory holds checkpoints, and none of them is complete.
    """
    if path.is_file() or (path / "config.yaml").is_file():
        return path
    from automodel_cli.engine.checkpoint.layout import LINKS, list_steps, resolve

    return resolve(path) if path.name in LINKS or list_steps(path) else path


ConfigOption = Annotated[
    list[Path] | None,
    option(
        "-c",
        "--config",
        help="YAML file, checkpoint or run; given several times, later ones win.",
        callback=_meant,
        complete=complete.config_files,
    ),
]
SetOption = Annotated[
    list[str] | None,
    option("--set", metavar="KEY=VALUE", help="Override one value; may be repeated.", complete=complete.assignments),
]
UnsetOption = Annotated[
    list[str] | None, option("--unset", metavar="KEY", help="Remove one key; may be repeated.", complete=complete.keys)
]
CheckpointArgument = Annotated[
    Path | None,
    typer.Argument(
        help="A checkpoint or a run's directory; without it, checkpoints/LATEST.",
        show_default=False,
        autocompletion=complete.checkpoints,
    ),
]
OverrideResumeOption = Annotated[
    list[str] | None,
    option("--override-resume", metavar="KEY", help="Allow a key to change that normally must not; may be repeated."),
]
TrustOption = Annotated[
    bool, typer.Option("--trust-config", help="Run code that a checkpoint's own configuration names.")
]
NprocOption = Annotated[
    str | None,
    option(
        "--nproc-per-node",
        metavar="N|auto|gpu|cpu",
        help="Number of processes to train in on this machine.",
        complete=lambda: list(NPROC_WORDS),
    ),
]
NnodesOption = Annotated[str, option("--nnodes", metavar="N|MIN:MAX", help="Number of machines.")]
NodeRankOption = Annotated[int | None, option("--node-rank", metavar="N", help="Number of this machine, from 0.")]
RdzvEndpointOption = Annotated[
    str, option("--rdzv-endpoint", metavar="HOST:PORT", help="Address at which the machines meet.")
]
RdzvBackendOption = Annotated[str, option("--rdzv-backend", metavar="NAME", help="Rendezvous backend: c10d or static.")]
MaxRestartsOption = Annotated[
    int,
    typer.Option(
        "--max-restarts", metavar="N", min=0, help="How often to start again from the last checkpoint after a failure."
    ),
]
MaxTimeOption = Annotated[
    str | None,
    option("--max-time", metavar="TIME", help="Save and stop with exit code 6 after this time, such as 3h30m."),
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before deleting.")]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print only the result and errors: no notes, no progress.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


class OverridableCommand(TyperCommand):
    """A command that reads `--a.b.c value` and `--a.b.c=value` as `--set a.b.c=value`.

    Rewritten before Typer parses the line, since Typer takes the value of an unknown option for an argument.
    """

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # ours is its own
        """Parses the line with every override as `--set`."""
        ctx.meta[_OWN_ARGUMENTS] = list(args)
        return super().parse_args(ctx, with_set_options(args, is_complete=not ctx.resilient_parsing))


class Group(TyperGroup):
    """A group of commands whose help shows whole sentences, on as many lines as they need."""

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]  # as above
        """Writes the table of commands."""
        commands = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        rows = [(name, command.get_short_help_str(_ANY_LENGTH)) for name, command in commands if command is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


_ANY_LENGTH = 10_000
_OWN_ARGUMENTS = "automodel_cli.own_arguments"
# The guides of NeMo AutoModel write this option before the command, and the kind of model after it.
_BEFORE_THE_COMMAND = "--nproc-per-node"
_LAUNCHING = ("pretrain", "resume")
_DOMAIN = "llm"


def own_arguments(ctx: typer.Context) -> list[str]:
    """The arguments after the command's name, as they were typed."""
    return list(ctx.meta[_OWN_ARGUMENTS])


def with_launch_options_behind(argv: list[str]) -> list[str]:
    """The arguments with `--nproc-per-node N` behind the command, and `pretrain llm` as `pretrain`.

    >>> with_launch_options_behind(["--nproc-per-node", "8", "pretrain", "llm", "-c", "a.yaml"])
    ['pretrain', '--nproc-per-node', '8', '-c', 'a.yaml']
    """
    name, equals, _ = argv[0].partition("=") if argv else ("", "", "")
    size = 0 if name != _BEFORE_THE_COMMAND else 1 if equals else 2
    moved, rest = argv[:size], argv[size:]
    if not rest or rest[0] not in _LAUNCHING:
        return argv
    return [rest[0], *moved, *(rest[2:] if rest[1:2] == [_DOMAIN] else rest[1:])]


def with_help_behind(argv: list[str]) -> list[str]:
    """The arguments with `help COMMAND` as `COMMAND --help`.

    >>> with_help_behind(["help", "data", "merge"])
    ['data', 'merge', '--help']
    """
    return [*argv[1:], "--help"] if argv[:1] == ["help"] else argv


def with_set_options(args: list[str], *, is_complete: bool = True) -> list[str]:
    """The arguments with dotted options as `--set`; all others as they are.

    Args:
        args: The arguments of one command.
        is_complete: False while the line is still being typed, so that a value may be missing.

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


def working(command: Callable[P, R]) -> Callable[P, R]:
    """Makes a command go on when standard output cannot be written: its work counts, not its output."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        terminal.quiet_libraries()
        with terminal.going_on_unread():
            return command(*args, **kwargs)

    return run
