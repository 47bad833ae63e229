"""`amcli prep`: text to token shards."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, fields
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from automodel_cli.commands import complete, render, render_prep
from automodel_cli.commands.options import JsonOption, QuietOption, YesOption
from automodel_cli.engine.prep.prep_options import PrepOptions, SourceOptions
from automodel_cli.errors import UsageError

_COMPLETIONS = {"tokenizer": complete.tokenizers}


def _fields(kind: Any) -> Iterator[Field[Any]]:
    """The fields of a dataclass that are options."""
    return (each for each in fields(kind) if "help" in each.metadata)


def _parameter(each: Field[Any], kind: Any) -> inspect.Parameter:
    shown = dict(each.metadata)
    names = shown.pop("names", ())
    default = each.default
    if shown.pop("parse", None) is not None:
        kind, default = str | None, None
    option = typer.Option(*names, **shown, show_default=default is not None, autocompletion=_COMPLETIONS.get(each.name))
    return inspect.Parameter(
        each.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


def _values(kind: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given for the fields of a dataclass, parsed."""
    values = {}
    for each in _fields(kind):
        value, parse = given.get(each.name), each.metadata.get("parse")
        if value is not None:
            values[each.name] = value if parse is None else parse(value)
    return values


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of `SourceOptions` and `PrepOptions` in the place of `given`."""
    own = inspect.signature(command, eval_str=True)
    options = {
        each.name: _parameter(each, get_type_hints(kind)[each.name])
        for kind in (SourceOptions, PrepOptions)
        for each in _fields(kind)
    }

    @wraps(command)
    def run(*args: Any, **values: Any) -> None:
        given = {name: values.pop(name) for name in options if name in values}
        command(*args, given=given, **values)

    parameters = own.parameters.values()
    shown = [new for each in parameters for new in (options.values() if each.name == "given" else (each,))]
    run.__signature__ = own.replace(parameters=shown)  # type: ignore[attr-defined]  # as `inspect` looks for it
    return run


@_with_options
def prep(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE]...",
            help="A preset (see --list), files, patterns in quotes, FILE.py:NAME, or - for standard input.",
            autocompletion=complete.sources,
        ),
    ] = None,
    *,
    given: Mapping[str, Any],
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte again when all is written.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and stop.")] = False,
    yes: YesOption = False,
    list_: Annotated[bool, typer.Option("--list", help="Show the presets and stop.")] = False,
    quiet: QuietOption = False,
    json_: JsonOption = False,
) -> None:
    """Prepare text as token shards for training.

    Finished data with the same settings are left alone; an interrupted run goes on where it was.
    How the work is divided (workers, chunks, prefetch) changes no byte of the result.

    \b
    Examples:
      amcli prep shakespeare
      amcli prep fineweb --max-tokens 500M --val-tokens 1M
      amcli prep --dataset HuggingFaceFW/fineweb --set-name sample-10BT --max-tokens 500M
      amcli prep 'books/*.txt' --tokenizer gpt2 --output-dir data/books
      amcli prep my_source.py:build --source-args '{"lang": "de"}' --max-tokens 1B
      amcli prep notes.jsonl --text-column body --tokenizer bytes --dry-run
      amcli prep --list
    """
    if list_:
        render_prep.presets(as_json=json_)
        return
    source = SourceOptions(sources=tuple(sources or ()), on_wait=render_prep.note, **_values(SourceOptions, given))
    if not source.sources and source.dataset is None:
        raise UsageError("`amcli prep` needs a source", help="try `amcli prep shakespeare`, or `amcli prep --list`")
    options = PrepOptions(source, **_values(PrepOptions, given))
    if dry_run:
        from automodel_cli.engine.prep.estimate import estimate

        render_prep.estimate(estimate(options), as_json=json_)
        return

    from automodel_cli.engine.prep.prep_plan import output_directory
    from automodel_cli.engine.prep.prepare import prepare

    directory = output_directory(options)
    if options.overwrite and directory.is_dir() and any(directory.iterdir()):
        render.ask(f"delete the data in {directory}", yes=yes)
    with render_prep.progress(", ".join(source.sources or [str(source.dataset)]), quiet=json_ or quiet) as on_progress:
        result = prepare(options, on_progress, render_prep.note)
    if verify:
        from automodel_cli.engine.prep.output_dir import check_every_byte

        check_every_byte(result.directory)
    render_prep.result(result, verified=verify, as_json=json_)
