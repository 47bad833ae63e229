"""The Typer app, the root options, and the one place where an exception becomes a message.

Nothing here or in `commands/` imports torch before a command needs it, so `--help`, completion and `config show`
stay fast.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import sys
import traceback
from pathlib import Path

import typer
from typer.exceptions import TyperException

from automodel_cli import __version__, terminal
from automodel_cli.commands import shells
from automodel_cli.commands.config import config_app
from automodel_cli.commands.data import data_app
from automodel_cli.commands.exchange import export, import_
from automodel_cli.commands.inspect_ckpt import inspect_ckpt
from automodel_cli.commands.options import (
    Group,
    OverridableCommand,
    with_help_behind,
    with_launch_options_behind,
    working,
)
from automodel_cli.commands.plan import plan
from automodel_cli.commands.prep import prep
from automodel_cli.commands.pretrain import pretrain, resume
from automodel_cli.commands.sample import sample
from automodel_cli.commands.verify_resume import verify_resume
from automodel_cli.engine.config.emit import printable
from automodel_cli.engine.config.secrets import masked_message
from automodel_cli.engine.distributed.environment import ask_for_huge_pages, rank_place, wait_without_spinning
from automodel_cli.engine.distributed.rank_report import is_symptom, write_report
from automodel_cli.errors import AmcliError, ExitCode, InterruptedTrainingError

TRACEBACK_OPTION = "--traceback"
TRACEBACK_VARIABLE = "AMCLI_TRACEBACK"
_LINE_LENGTH = 2000  # longest line of a message; data, not words, fills a longer one

# Rich help and pretty exceptions cost 0.15 s at every start (benchmarks/startup.py), more than everything else.
app = typer.Typer(
    name="amcli",
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)

app.command("prep")(working(prep))
app.command("plan", cls=OverridableCommand)(plan)
app.command("pretrain", cls=OverridableCommand)(working(pretrain))
app.command("resume", cls=OverridableCommand)(working(resume))
app.command("inspect-ckpt")(inspect_ckpt)
app.command("verify-resume", cls=OverridableCommand)(working(verify_resume))
app.command("export")(working(export))
app.command("import")(working(import_))
app.command("sample")(sample)
app.add_typer(data_app, name="data")
app.add_typer(config_app, name="config")
shells.register()


def _print_version(context: typer.Context, value: bool) -> None:
    if value and not context.resilient_parsing:  # not while the line is being completed
        typer.echo(f"amcli {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
    show_traceback: bool = typer.Option(
        False, TRACEBACK_OPTION, help=f"Show the traceback of an error; so does {TRACEBACK_VARIABLE}=1."
    ),
) -> None:
    """Pre-train language models, from raw text to a checkpoint that every Hugging Face tool can load.

    \b
    Start here:
      amcli prep shakespeare     prepare the embedded text
      amcli pretrain             train a small GPT-2 on it
      amcli sample               write text with it

    \b
    Exit codes:
      0 done   1 defect or error in your own code   2 usage or configuration   3 data
      4 checkpoint   5 training diverged   6 stopped by a signal, checkpoint saved
      7 out of memory   8 a rank hung
    """


def run(argv: list[str]) -> int:
    """Runs one command line and returns its exit code; never raises for an error of the user."""
    wants_traceback = _wants_traceback(argv)
    argv = with_help_behind([argument for argument in argv if argument != TRACEBACK_OPTION])
    argv = with_launch_options_behind(argv)
    try:
        status = app(args=argv, prog_name="amcli", standalone_mode=False)
        sys.stdout.flush()  # here a failed write still sets the exit code
        return status if isinstance(status, int) else ExitCode.OK
    except terminal.OutputLostError as error:
        # A reader that has closed the pipe (`| head`) is no error; a full disk is.
        is_reader = error.reason.errno in (errno.EPIPE, errno.EIO)
        return 141 if is_reader else _report(f"the output cannot be written: {error.reason.strerror}", None, 141)
    except AmcliError as error:
        with contextlib.suppress(Exception):  # the error matters more than the lines around its place
            from automodel_cli.engine.config.excerpt import add_excerpts

            add_excerpts(error, argv)
        return _report_failure(error, str(error), wants_traceback, error.exit_code)
    except TyperException as error:
        return _report_usage(error, argv)
    except typer.Abort:
        return _report("aborted", None, 130)
    except KeyboardInterrupt:
        return _report("interrupted", None, 130, label="")
    except SystemExit as error:
        if _is_of_typer(error):  # typer exits after completion, and when the reader has left
            raise
        # `sys.exit()` in code that a run calls must not give exit code 0.
        failure = RuntimeError(f"code that the run calls ended the process (SystemExit: {error})").with_traceback(
            error.__traceback__
        )
        return _report_failure(failure, _describe(failure), wants_traceback, ExitCode.INTERNAL)
    except Exception as error:
        return _report_failure(error, _describe(error), wants_traceback, ExitCode.INTERNAL)


def _is_of_typer(error: SystemExit) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    # Some libraries replace `sys.exit` by a function of their own, whose frame is then the last.
    return any(frame.filename.startswith(str(Path(typer.__file__).parent)) for frame in frames[-2:])


def main() -> None:
    """The console script."""
    terminal.install(shows_everything=_wants_traceback(sys.argv))
    wait_without_spinning()
    ask_for_huge_pages()
    raise SystemExit(run(sys.argv[1:]))


def _wants_traceback(argv: list[str]) -> bool:
    # The option works in any place: people append it to the command that failed.
    return TRACEBACK_OPTION in argv or os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0")


def _report_failure(error: Exception, message: str, wants_traceback: bool, status: int) -> int:
    """Prints an error. A rank reports it to its launcher, and prints it only if the launcher does not."""
    message = masked_message(message)
    place = rank_place()
    if place.launcher:
        write_report(place, error, message)
        if place.is_ours and isinstance(error, InterruptedTrainingError):
            # The launcher would answer another code with a restart; it sets the exit code itself.
            return ExitCode.OK
    traceback_of = error if wants_traceback else None
    if not place.launcher or place.rank == 0:
        # The launcher prints the reports of its ranks; the rank itself prints only a traceback, with --traceback.
        label = "" if status == ExitCode.INTERRUPTED else "error"  # a stop that was requested is no error
        return _report(message, traceback_of, status, label) if not place.is_ours or wants_traceback else status
    if not place.is_ours and not is_symptom(error):
        _report(f"rank {place.rank} on {platform.node()}: {message}", traceback_of)
    return status


def _report(message: str, error: BaseException | None, status: int = ExitCode.INTERNAL, label: str = "error") -> int:
    if error is not None:
        sys.stderr.write(masked_message("".join(traceback.format_exception(error))))
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    start = "" if not label else f"\x1b[1;31m{label}:\x1b[0m " if colour else f"{label}: "
    sys.stderr.write(f"{start}{_shown(message)}\n")
    return status


def _shown(message: str) -> str:
    """A message that is safe on a terminal: names in it come from files and may hold any characters, of any length."""
    lines = (line if len(line) <= _LINE_LENGTH else f"{line[:_LINE_LENGTH]}..." for line in message.split("\n"))
    return "\n".join(map(printable, lines))


def _report_usage(error: TyperException, argv: list[str]) -> int:
    message = error.format_message()
    if message.startswith("Usage: "):  # a bare `amcli`: the help page itself
        sys.stderr.write(f"{message}\n")
        return ExitCode.USAGE
    from automodel_cli.commands import usage

    right, message = usage.explain(app, argv, error)
    sys.stderr.write(f"{right}\n")
    return _report(masked_message(message), None, ExitCode.USAGE)


def _describe(error: Exception) -> str:
    """An unexpected exception in a few lines: what, where, and how to see its traceback."""
    try:
        text = str(error)
    except Exception as failure:  # of the user's own class
        text = f"(its text cannot be made: {type(failure).__name__})"
    lines = [f"{type(error).__name__}: {text}"]
    frames = traceback.extract_tb(error.__traceback__)
    if frames:
        lines.append(f"  at {frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}")
    lines += [f"  {note}" for note in getattr(error, "__notes__", [])]
    lines.append(f"  help: run it again with {TRACEBACK_OPTION} to see every frame")
    return "\n".join(lines)
