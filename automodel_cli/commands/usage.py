"""The message about a wrong command line: the right usage, what is wrong, and what was probably meant.

Typer's parser finds the mistake. The suggestions are made here, from the options of other commands, the commands
of a group, keys of the configuration without their section, and arguments without their option.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.exceptions import TyperException

from automodel_cli.engine.config.load import builtin_config
from automodel_cli.engine.config.suggest import command, nearest, quoted

_EXTRA_ARGUMENTS = re.compile(r"Got unexpected extra arguments?(?:\(s\))? \((?P<first>\S+).*\)")
_NUMBER = re.compile(r"a valid float(?: range)?")
_WHOLE_NUMBER = re.compile(r"a valid int(?:eger)?(?: range)?")
_MISSING_VALUE = re.compile(r"Option .* requires an argument\.?")


def explain(app: typer.Typer, argv: list[str], error: TyperException) -> tuple[str, str]:
    """The usage of the command that was meant, and the message with its help line.

    Args:
        app: The app with all commands.
        argv: The arguments that `error` is about.
        error: Raised by Typer's parser.
    """
    command = typer.main.get_command(app)
    root = typer.Context(command, info_name="amcli", **command.context_settings)
    context, rest = _command_of(root, argv)
    message, help_ = _explain(root, context, rest, error)
    return context.get_usage(), f"{message}\n  help: {help_ or f'`{context.command_path} --help` shows what there is'}"


def _command_of(root: typer.Context, argv: list[str]) -> tuple[typer.Context, list[str]]:
    """The innermost command that the arguments name, and the arguments after its name."""
    context, rest = root, argv
    while isinstance(context.command, TyperGroup):
        words = [word for word in rest if not word.startswith("-")]
        command = context.command.get_command(context, words[0]) if words else None
        if command is None:
            break
        rest = rest[rest.index(words[0]) + 1 :]
        context = typer.Context(command, info_name=words[0], parent=context)
    return context, rest


def _explain(
    root: typer.Context, context: typer.Context, rest: list[str], error: TyperException
) -> tuple[str, str | None]:
    message = error.format_message()
    path = context.command_path
    # Typer publishes the base class alone; its errors about an option carry the option's name.
    option = getattr(error, "option_name", None)
    if option and _MISSING_VALUE.fullmatch(message):
        return f"`{option}` needs a value", _form_of(context, option)
    if option and option not in _options(context):
        return f"`{path}` takes no option `{option}`", _instead_of_option(root, context, rest, option)
    if isinstance(context.command, TyperGroup) and option is None:
        words = [word for word in rest if not word.startswith("-")]
        if words:
            return f"`{path}` has no command `{words[0]}`", _instead_of_command(context, words[0], rest)
    if extra := _EXTRA_ARGUMENTS.fullmatch(message):
        return f"`{path}` takes no argument `{extra['first']}`", _instead_of_argument(context, extra["first"])
    return _WHOLE_NUMBER.sub("a whole number", _NUMBER.sub("a number", message)), None


def _instead_of_command(context: typer.Context, word: str, rest: list[str]) -> str:
    """The nearest command, or the group that has a command of this name, or all commands."""
    group = context.command
    names = group.list_commands(context) if isinstance(group, TyperGroup) else []
    after = rest[rest.index(word) + 1 :]
    match = nearest(word.lower().replace("_", "-"), names)
    if match is None:
        inner = [path for path, command in _commands(context) if command.name == word]
        if not inner:
            return f"the commands are: {', '.join(names)}"
        return f"did you mean `{inner[0]}`?"
    return f"did you mean `{command(*context.command_path.split()[1:], match, *after)}`?"


def _instead_of_option(root: typer.Context, context: typer.Context, rest: list[str], option: str) -> str | None:
    """A key of the configuration, else the commands that have this option, else the nearest option."""
    known = _options(context)
    if "--set" in known and (key := _key_named(option)):
        return f"it is a key of the configuration: --set {quoted(f'{key}={_value_of(option, rest)}')}"
    owners = [path for path, command in _commands(root) if option in _options_of(command)]
    if owners:
        return f"it is an option of {', '.join(f'`{owner}`' for owner in owners)}"
    section = option.lstrip("-")
    if "--set" in known and isinstance(builtin_config().get(section), Mapping):
        return f"`{section}` is a section of the configuration: --set {section}.KEY=VALUE"
    # Compared without the dashes, which all options share.
    match = nearest(option.lstrip("-"), [name.lstrip("-") for name in known])
    return f"did you mean {'--' if len(match) > 1 else '-'}{match}?" if match else None


def _value_of(option: str, rest: list[str]) -> str:
    """The value that was typed for the option, or a placeholder."""
    for argument, following in zip(rest, [*rest[1:], "-"], strict=True):
        name, equals, value = argument.partition("=")
        if name == option:
            return value if equals else "VALUE" if following.startswith("-") else following
    return "VALUE"


def _instead_of_argument(context: typer.Context, argument: str) -> str | None:
    known = _options(context)
    if "--config" in known and argument.endswith((".yaml", ".yml")):
        return f"did you mean -c {quoted(argument)}?"
    if "--set" in known and "=" in argument:
        return f"did you mean --set {quoted(argument)}?"
    return None


def _key_named(option: str) -> str | None:
    """The key of the built-in configuration whose last part is this option, such as `--max-steps`."""
    from automodel_cli.engine.config.keys import known_keys

    name = option.lstrip("-").replace("-", "_")
    return next((key for key in known_keys(builtin_config()) if key.rpartition(".")[2] == name), None)


def _form_of(context: typer.Context, option: str) -> str | None:
    """An option as on the help page: `--set KEY=VALUE`."""
    for parameter in context.command.params:
        if isinstance(parameter, TyperOption) and option in parameter.opts:
            return f"{option} {parameter.make_metavar(context)}"
    return None


def _commands(context: typer.Context) -> Iterator[tuple[str, TyperCommand]]:
    """Every command at and below this one that is not a group, with its whole name."""
    command = context.command
    if isinstance(command, TyperGroup):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None:
                yield from _commands(typer.Context(inner, info_name=name, parent=context))
    elif isinstance(command, TyperCommand):
        yield context.command_path, command


def _options(context: typer.Context) -> list[str]:
    return [*_options_of(context.command), *context.help_option_names]


def _options_of(command: object) -> list[str]:
    if not isinstance(command, TyperCommand | TyperGroup):
        return []
    return [name for parameter in command.params if isinstance(parameter, TyperOption) for name in parameter.opts]
