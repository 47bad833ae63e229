"""`amcli config`: what a run would use, where every value came from, and files to start from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from automodel_cli import terminal
from automodel_cli.commands import complete, render, render_config
from automodel_cli.commands.options import (
    ConfigOption,
    Group,
    JsonOption,
    OverridableCommand,
    SetOption,
    TrustOption,
    UnsetOption,
    configuration_at,
    option,
)
from automodel_cli.commands.render_config import Format
from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.emit import differences
from automodel_cli.engine.config.load import changed_only, load_config
from automodel_cli.engine.config.settings import Settings
from automodel_cli.engine.config.suggest import command
from automodel_cli.errors import AmcliError, ConfigError, UsageError

if TYPE_CHECKING:
    pass

# Notes go to standard error: the output may be YAML that is read again.
_aside = render.speaker(as_json=True)

config_app = typer.Typer(cls=Group, rich_markup_mode=None, no_args_is_help=True)


@config_app.callback()
def config() -> None:
    """Look at configurations, check them, and start new ones.

    \b
    Examples:
      amcli config init my.yaml --preset nanogpt-124m
      amcli config show -c my.yaml --check
    """


@config_app.command("show", cls=OverridableCommand)
def show(
    config: ConfigOption = None,
    set_: SetOption = None,
    unset: UnsetOption = None,
    form: Annotated[Format | None, typer.Option("--format", help="Format of the output; yaml unless given.")] = None,
    no_origins: Annotated[bool, typer.Option("--no-origins", help="Do not print where each value came from.")] = False,
    changed: Annotated[
        bool,
        typer.Option(
            "--changed-only", help="Only values that differ from the default, or from the built-in configuration."
        ),
    ] = False,
    diff: Annotated[
        Path | None,
        option(
            metavar="FILE|CHECKPOINT",
            help="Show the differences from another configuration.",
            complete=complete.config_files,
        ),
    ] = None,
    explain: Annotated[
        str | None, option(metavar="KEY", help="Explain one key, and show its value here.", complete=complete.keys)
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Only check: one line, or everything that is wrong.")] = False,
    trust_config: TrustOption = False,
    plot_lr: Annotated[bool, typer.Option("--plot-lr", help="Draw the learning rate over the steps.")] = False,
    json_: JsonOption = False,
) -> None:
    """Print the final configuration and where every value came from.

    What it prints is valid YAML, with what follows from it (parameters, tokens, FLOPs) as comments at the end.
    If something is wrong, it is said after that, all at once.

    \b
    Examples:
      amcli config show
      amcli config show -c base.yaml -c mine.yaml --set model.n_layer=24
      amcli config show -c mine.yaml --check
      amcli config show -c mine.yaml --plot-lr --set lr_scheduler.lr_decay_style=WSD
      amcli config show -c mine.yaml --diff checkpoints/step_000600
      amcli config show --explain step_scheduler.global_batch_size
      amcli config show -c checkpoints/step_000600 --no-origins > again.yaml
    """
    form = _form(form, json_, diff is not None, explain is not None, check, plot_lr)
    as_json = form is Format.JSON
    if changed and (check or plot_lr or diff is not None or explain is not None):
        raise UsageError("--changed-only is for a whole configuration", help="leave it out")
    if check:
        _check(config, set_ or [], unset, trust=trust_config, as_json=as_json)
        return
    # Nothing that it names runs, so no consent is needed.
    final = load_config(config, set_ or [], unset or (), trust=True)
    if plot_lr:
        _plot_lr(final, as_json=as_json)
        return
    printed = final.masked()
    if diff is not None:
        other = load_config([configuration_at(diff)]).masked()
        render_config.differences(differences(other, printed), as_json=as_json)
    elif explain is not None:
        from automodel_cli.engine.config.keys import explain as explanation_of

        render_config.explanation(explanation_of(printed, explain), as_json=as_json)
    else:
        from automodel_cli.engine.config.trust import consent_notes
        from automodel_cli.engine.plan.derive import derive

        shown = changed_only(printed, built_in=not config) if changed else printed
        try:
            problem, settings = None, checked(final)
        except AmcliError as error:
            problem, settings = error, None
        # Nothing follows from wrong numbers. Missing data changes no number.
        follows = not (changed or no_origins or isinstance(problem, ConfigError))
        derived = derive(final) if follows and form in (Format.YAML, Format.JSON) else None
        render_config.configuration(shown, form, origins=not no_origins, derived=derived)
        if settings is None:
            raise problem or ConfigError("the configuration could not be checked")
        _say_notes(settings, consent_notes(load_config(config)))


@config_app.command("init")
def init(
    path: Annotated[Path, typer.Argument(help="File to write; - prints it.")] = Path("my.yaml"),
    preset: Annotated[
        str, typer.Option(help="quickstart, nanogpt-124m or hf-llama.", autocompletion=complete.presets)
    ] = "quickstart",
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that exists.")] = False,
) -> None:
    """Write a commented configuration to start from: every key with its meaning and default.

    \b
    Examples:
      amcli config init
      amcli config init fineweb.yaml --preset nanogpt-124m
      amcli config init - --preset hf-llama
    """
    from automodel_cli.engine.config.template import template, write_template

    if str(path) == "-":
        typer.echo(template(preset), nl=False)
        return
    write_template(path, preset, overwrite=force)
    with terminal.going_on_unread():
        typer.echo(f"wrote {path}\nnext: {command('config', 'show', '-c', path, '--check')}")
        typer.echo(f"then: {command('pretrain', '-c', path)}")


@config_app.command("schema")
def schema() -> None:
    """Print a JSON Schema of configurations, so that an editor completes and checks the YAML.

    \b
    Examples:
      amcli config schema > amcli.schema.json
    """
    from automodel_cli.engine.config.schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


def _form(form: Format | None, json_: bool, *single: bool) -> Format:
    """The format of the output; `--json` is short for `--format json`."""
    if sum(single) > 1:
        raise UsageError(
            "--diff, --explain, --check and --plot-lr each ask for another output", help="give one of them"
        )
    if json_ and form not in (None, Format.JSON):
        raise UsageError(f"--json and --format {form} ask for two formats", help="give one of them")
    if any(single) and form in (Format.YAML, Format.FLAT, Format.TABLE):
        message = f"--format {form} is for a whole configuration"
        raise UsageError(message, help="--diff, --explain, --check and --plot-lr print text, or --format json")
    return Format.JSON if json_ else form or Format.YAML


def _plot_lr(config: Config, *, as_json: bool) -> None:
    from automodel_cli.commands import render_schedule
    from automodel_cli.engine.config.values import tokens_per_step
    from automodel_cli.engine.optim.lr_schedule import schedule_of

    settings = checked(config)
    curve = schedule_of(config, settings)
    render_schedule.schedule(curve, settings.step_scheduler.max_steps, tokens_per_step(config), as_json=as_json)


def _check(
    paths: list[Path] | None, assignments: list[str], unset: list[str] | None, *, trust: bool, as_json: bool
) -> None:
    """One line if the configuration is sound, else everything that is wrong, and its exit code."""
    source = ", ".join(map(str, paths)) if paths else "the built-in configuration"
    try:
        settings = checked(load_config(paths, assignments, unset or (), trust=trust))
    except AmcliError as error:
        if not as_json:
            raise
        render_config.verdict(source, problems=error.problems or (error,))
        raise typer.Exit(error.exit_code) from error
    if as_json:
        render_config.verdict(source, settings=settings)
        return
    from automodel_cli.engine.config.notes import unchecked_words

    typer.echo(f"{source}: {settings.num_checks} checks passed{unchecked_words(settings.unchecked)}")
    _say_notes(settings)


def _say_notes(settings: Settings, more: Sequence[str] = ()) -> None:
    from automodel_cli.engine.config.notes import unchecked_notes

    render.notes([*settings.notes, *unchecked_notes(settings), *more], _aside)
