"""All checks that need no torch and run none of the user's code; all errors at once.

Every run passes `checked` before anything that costs time. The rules are in the files `check_*.py` and in
`parallel_layout.py`; types and ranges are in `sections.py`.
"""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import Field, replace
from typing import Any

from automodel_cli.engine.config.check_settings import (
    check_checkpoint,
    check_elastic,
    check_model,
    check_schedule,
    check_sinks,
    check_validation,
)
from automodel_cli.engine.config.config import MAX_PROBLEMS, TARGET, Config
from automodel_cli.engine.config.origin import KeyPath, dotted
from automodel_cli.engine.config.parallel_layout import check_layout
from automodel_cli.engine.config.secrets import masked_value
from automodel_cli.engine.config.sections import (
    SECTIONS,
    General,
    is_replaced,
    is_required,
    own_sections,
    section_fields,
    type_words,
)
from automodel_cli.engine.config.settings import Settings
from automodel_cli.engine.config.suggest import hint, nearest
from automodel_cli.engine.config.target_sections import TARGET_SECTIONS, VALIDATION, is_named_sets, top_level_names
from automodel_cli.engine.config.values import resolve_env
from automodel_cli.errors import AmcliError, ConfigError


def checked(config: Config, world_size: int | None = None) -> Settings:
    """The typed settings of a configuration that passes every check.

    Args:
        config: The final configuration.
        world_size: Ranks of the run; None where it is not about to start.

    Raises:
        DataError: Only the data is wrong; one error that lists everything.
        ConfigError: One error that lists everything that is wrong.
    """
    # Imported here: reading source takes modules that printing or completing a configuration does not need.
    from automodel_cli.engine.config.check_data import check_data
    from automodel_cli.engine.config.check_targets import check_targets, one_error
    from automodel_cli.engine.config.notes import notes_on

    problems: list[AmcliError] = []
    _check_top_level(config, problems)
    general = _build(General, config, (), problems)
    sections = {section.name: _build(section, config, (section.name,), problems) for section in SECTIONS}
    is_whole = general is not None and None not in sections.values()
    settings = Settings(general=general, **sections) if is_whole else None
    if settings is not None:
        _check_across(config, settings, world_size, problems)
    targets, data = check_targets(config), check_data(config)
    problems += [*targets.problems, *data.problems]
    if settings is None or problems:
        raise one_error(problems)
    return replace(
        settings,
        notes=notes_on(config, settings, targets, data),
        num_checks=_num_own_values(config) + targets.num_checks + data.num_checks,
        unchecked=(*targets.unchecked, *data.unchecked),
    )


def _num_own_values(config: Config) -> int:
    owners = own_sections(config.values)
    prefixes: dict[type[Any], KeyPath] = {owner: (owner.name,) if owner.name else () for owner in owners}
    return sum(config.has(dotted((*prefixes[owner], name))) for owner in owners for name in section_fields(owner))


def _check_top_level(config: Config, problems: list[AmcliError]) -> None:
    allowed = top_level_names()
    for name in [name for name in config.values if name not in allowed][:MAX_PROBLEMS]:
        where = str(config.key_origin((name,)))
        problems.append(ConfigError(f"unknown section `{name}`", where=where, help=_section_hint(name, allowed)))
    for name, required in TARGET_SECTIONS.items():
        value = config.get(name)
        if value is None:
            if required:
                problems.append(ConfigError(f"the section `{name}` is missing", help=f"give it a `{TARGET}`"))
        elif name == VALIDATION and is_named_sets(value):
            continue
        elif not isinstance(value, Mapping) or not isinstance(value.get(TARGET), str):
            message = f"`{name}` must be a section with a `{TARGET}` that names what to build"
            message += ", or sections of that kind by name" if name == VALIDATION else ""
            problems.append(ConfigError(message, where=str(config.origin((name,)))))


def _section_hint(name: str, allowed: list[str]) -> str:
    """The section that was meant, or the place of a key that stands outside its section."""
    if nearest(name, allowed) is None:
        inner = {key: f"{section.name}.{key}" for section in SECTIONS for key in section_fields(section)}
        inner |= {"lr": "optimizer.lr", "weight_decay": "optimizer.weight_decay"}
        if match := nearest(name, inner):
            return f"did you mean `{inner[match]}`?"
    return hint(name, allowed, noun="sections")


def _build(section: type[Any], config: Config, prefix: KeyPath, problems: list[AmcliError]) -> Any:
    """An instance of one section; None if there are problems, which are collected."""
    num_problems = len(problems)
    values = config.values if not prefix else config.get(dotted(prefix))
    known = section_fields(section)
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        problems.append(ConfigError(f"`{dotted(prefix)}` must be a section", where=str(config.origin(prefix))))
        return None
    if is_replaced(section.name, config.values):
        known = {TARGET: known[TARGET]}  # the other keys are held to what the callable takes
    elif prefix:
        for name in [name for name in values if name not in known][:MAX_PROBLEMS]:
            where = str(config.key_origin((*prefix, name)))
            message = f"unknown key `{dotted((*prefix, name))}`"
            problems.append(ConfigError(message, where=where, help=hint(name, known)))
    arguments: dict[str, Any] = {}
    types_of = typing.get_type_hints(section)
    for name, item in known.items():
        path = (*prefix, name)
        if name in values:
            try:
                arguments[name] = _checked_value(config, path, values[name], item, types_of[name])
            except ConfigError as error:
                problems.append(error)
        elif is_required(item):
            origin = config.origins.get(prefix)
            is_written = origin is not None and origin.kind != "default"
            message = f"`{dotted(path)}` is missing: {item.metadata['meaning']}"
            problems.append(ConfigError(message, where=str(origin) if is_written else None))
    return section(**arguments) if len(problems) == num_problems else None


def _checked_value(config: Config, path: KeyPath, raw: Any, item: Field[Any], annotation: Any) -> Any:
    origin = config.origin(path)
    value = resolve_env(raw, origin)
    allowed = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        value = _as_float(value)
    rule = item.metadata
    found = "null" if value is None else repr(masked_value(dotted(path), value))
    shown = f"{dotted(path)} is {found}"
    if rule["choices"] is not None:
        # By type too: to Python, 1 is true.
        if not any(value == choice and type(value) is type(choice) for choice in rule["choices"]):
            names = ", ".join("null" if choice is None else str(choice) for choice in rule["choices"])
            candidates = [str(choice) for choice in rule["choices"]]
            help_ = hint(str(value), candidates, noun="values") if isinstance(value, str) else None
            raise ConfigError(f"{shown}, but it must be one of {names}", where=str(origin), help=help_)
        return value
    if type(value) not in allowed:
        named = type_words(tuple(kind for kind in allowed if kind is not str or not rule["words"]))
        wanted = " or ".join((named, *rule["words"]))
        raise ConfigError(f"{shown}, but it must be {wanted}", where=str(origin), help=rule["meaning"])
    if isinstance(value, str) and rule["words"]:
        if value not in rule["words"]:
            names = " or ".join(rule["words"])
            raise ConfigError(f"{shown}, but it must be a whole number or {names}", where=str(origin))
        return value
    if isinstance(value, str) and rule["duration"]:
        return value  # converted and held to its range by `check_schedule`, which knows the tokens of a step
    if value is not None and rule["minimum"] is not None and not value >= rule["minimum"]:
        raise ConfigError(f"{shown}, but it must be at least {rule['minimum']}", where=str(origin))
    if isinstance(value, int) and value > rule["maximum"]:
        raise ConfigError(f"{shown}, but it must be at most {rule['maximum']}", where=str(origin))
    if value is not None and rule["above"] is not None and not value > rule["above"]:
        raise ConfigError(f"{shown}, but it must be above {rule['above']}", where=str(origin), help=rule["meaning"])
    return value


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _check_across(config: Config, settings: Settings, world_size: int | None, problems: list[AmcliError]) -> None:
    """Rules that tie one section to another."""

    def refuse(path: str, message: str, help_: str | None) -> None:
        where = config.origin(_most_deliberate(config, path, message))
        problems.append(ConfigError(message, where=str(where), help=help_))

    check_schedule(config, settings, refuse)
    check_validation(config, settings, refuse)
    check_model(config, refuse)
    check_layout(config, settings, world_size, refuse)
    check_elastic(config, settings, refuse)
    check_checkpoint(settings, refuse)
    check_sinks(config, settings, refuse)


# If two values contradict each other, the error points at the later one: an option comes after a file.
_DELIBERATE = {"default": 0, "file": 1, "checkpoint": 1, "option": 2}


def _most_deliberate(config: Config, path: str, message: str) -> KeyPath:
    """The key to look at among those that a message names: `path`, or one that was set more deliberately.

    The message may name a key of the same section without its section.
    """

    def rank(key: str) -> int:
        return _DELIBERATE[config.origin(tuple(key.split("."))).kind]

    named = re.findall(r"[A-Za-z_]\w*(?:\.\w+)*", message)
    section = path.rpartition(".")[0]
    keys = [key for name in named for key in (name, f"{section}.{name}") if "." in key and config.has(key)]
    best = max([path, *keys], key=rank)  # the first of equals
    return tuple(best.split("."))
