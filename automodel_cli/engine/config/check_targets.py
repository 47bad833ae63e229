"""Every `_target_` of a configuration against its source: unknown and missing keywords, without importing.

What source does not tell is listed as unchecked, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from automodel_cli.engine.config.aliases import resolved
from automodel_cli.engine.config.check_param_groups import param_group_problems
from automodel_cli.engine.config.config import TARGET, Config
from automodel_cli.engine.config.env import resolve_env
from automodel_cli.engine.config.limits import MAX_TARGETS
from automodel_cli.engine.config.origin import KeyPath, dotted
from automodel_cli.engine.config.sections import ENGINE_KEYS, RUNTIME, SUPPLIED, TARGET_SECTIONS
from automodel_cli.engine.config.signature import keyword_problems
from automodel_cli.engine.config.source_classes import declared_names
from automodel_cli.engine.config.source_modules import Sources
from automodel_cli.engine.config.source_names import Class
from automodel_cli.engine.config.static_target import StaticTarget, static_target
from automodel_cli.engine.config.suggest import nearest
from automodel_cli.engine.config.target_errors import Place
from automodel_cli.engine.config.trust import (
    is_known_definition,
    is_known_name,
    is_started_here,
    trust_problems,
    untrusted,
)
from automodel_cli.errors import AmcliError, ConfigError

# Code of these is not listed before it runs: everybody who uses amcli has it.
_WELL_KNOWN = ("automodel_cli", "torch", "transformers", "datasets", "tokenizers", "numpy", "nemo_automodel")


@dataclass
class TargetCheck:
    """What was found about all targets.

    Args:
        problems: What is certainly wrong.
        unchecked: One line for each target whose keywords could not be checked.
        targets: All targets, as written.
        foreign: Source files of code that not everybody has, and the targets that run it.
    """

    problems: list[AmcliError] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    foreign: dict[Path, list[str]] = field(default_factory=dict)


def check_targets(config: Config) -> TargetCheck:
    """Checks the sections that the engine builds, and every `_target_` inside them."""
    found, sources = TargetCheck(), Sources()
    sections = [pair for name in TARGET_SECTIONS for pair in _sections_with_target(config.get(name), (name,))]
    for path, section in sections[:MAX_TARGETS]:
        try:
            _check(config, path, section, found, sources)
        except ConfigError as error:
            found.problems.append(error)
    if len(sections) > MAX_TARGETS:
        found.unchecked.append(f"only the first {MAX_TARGETS} targets are checked before they are called")
    found.problems += trust_problems(config, sources=sources)
    return found


def _sections_with_target(node: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Mapping[str, Any]]]:
    if isinstance(node, Mapping):
        if TARGET in node:
            yield path, node
        for name, inner in node.items():
            yield from _sections_with_target(inner, (*path, name))
    elif isinstance(node, list):
        for index, inner in enumerate(node):
            yield from _sections_with_target(inner, (*path, index))


def _check(config: Config, path: KeyPath, section: Mapping[str, Any], found: TargetCheck, sources: Sources) -> None:
    key = (*path, TARGET)
    origin = config.origin(key)
    target = resolve_env(section[TARGET], origin)
    if not isinstance(target, str):
        if len(path) > 1:  # of the outer sections this is said already
            raise ConfigError(f"{dotted(key)} is {target!r}, but it must be text", where=str(origin))
        return
    found.targets.append(target)
    if origin.kind == "checkpoint" and not is_known_name(target) and not is_started_here(target, origin, sources):
        return  # said by `trust_problems`
    result = static_target(resolved(target), origin, dotted(key), sources)
    _check_definition(target, result, Place(origin, dotted(key)), found, sources)
    if path == ("optimizer",):
        found.problems += param_group_problems(config, target, result.signature)
    given = [name for name in section if name not in {TARGET, *ENGINE_KEYS.get(dotted(path), ())}]
    if result.signature is None:
        found.unchecked.append(_unchecked_line(config, path, target, given, result))
        return
    supplied = SUPPLIED.get(dotted(path), ())
    runtime = RUNTIME.get(str(path[0]), ())
    found.problems += keyword_problems(
        result.signature, target, given, config, path, supplied=supplied, runtime=runtime
    )


def _check_definition(target: str, result: StaticTarget, place: Place, found: TargetCheck, sources: Sources) -> None:
    """Refuses what a checkpoint may not name, and keeps where code of the user's own or of others stands.

    Raises:
        ConfigError: It is refused. What source does not show is decided when it is resolved.
    """
    definition = result.definition
    is_known = place.origin.kind != "checkpoint" or definition is None or is_known_definition(definition)
    if not is_known and not is_started_here(target, place.origin, sources):
        raise untrusted(target, place, sources)
    for module in result.modules:
        if module.path is not None and module.name.partition(".")[0] not in _WELL_KNOWN:
            targets = found.foreign.setdefault(module.path, [])
            targets += [] if target in targets else [target]


def _unchecked_line(config: Config, path: KeyPath, target: str, given: list[str], result: StaticTarget) -> str:
    """What is not checked and why, and names among the keywords that look misspelt."""
    where = config.origin((*path, TARGET))
    line = f"{where}: the keywords of `{target}` are not checked: {result.unchecked}"
    declared = declared_names(result.definition) if isinstance(result.definition, Class) else ()
    for name in given:
        match = nearest(name, declared) if declared and name not in declared else None
        if match:
            line += f"; `{dotted((*path, name))}` looks like `{match}`"
    return line
