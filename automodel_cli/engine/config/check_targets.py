"""Holds every `_target_` of a configuration, and the optimizer's `param_groups`, to its source, without importing it.

What source does not tell is listed as unchecked, with the reason; `check_for_certain` imports it and asks the object.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from automodel_cli.engine.config.aliases import resolved
from automodel_cli.engine.config.check_values import value_problems
from automodel_cli.engine.config.config import MAX_PROBLEMS, TARGET, Config
from automodel_cli.engine.config.declared_facts import OptimizerFacts, facts_in_source
from automodel_cli.engine.config.origin import KeyPath, dotted
from automodel_cli.engine.config.settings import Unchecked
from automodel_cli.engine.config.source_modules import Module, Sources, Undecided
from automodel_cli.engine.config.source_names import Definition
from automodel_cli.engine.config.source_signatures import call_signature, words_of_kwargs
from automodel_cli.engine.config.suggest import hint, nearest
from automodel_cli.engine.config.target import StaticTarget, resolve_target, static_target
from automodel_cli.engine.config.target_errors import Place, Signature, keyword_problems, signature_of
from automodel_cli.engine.config.target_sections import (
    CALLED_SECTIONS,
    ENGINE_KEYS,
    RUNTIME,
    SUPPLIED,
    sections_with_target,
)
from automodel_cli.engine.config.trust import (
    is_known_definition,
    is_known_name,
    is_started_here,
    trust_problems,
    untrusted,
)
from automodel_cli.engine.config.values import resolve_env
from automodel_cli.errors import AmcliError, ConfigError, DataError

# A keyword that only `**kwargs` takes counts as misspelt when it is this much like a known one.
_ALIKE = 0.8
# Maximum number of targets that are looked up in source; the others are checked when they are called.
MAX_TARGETS = 100


# Packages that users of amcli have anyway: their code is not listed before it runs.
_WELL_KNOWN = ("automodel_cli", "torch", "transformers", "datasets", "tokenizers", "numpy", "nemo_automodel")
_GROUPS: KeyPath = ("optimizer", "param_groups")
_OWN = ("pattern", "lr_mult", "weight_decay")


@dataclass
class TargetCheck:
    """What was found about all targets.

    Args:
        problems: What is certainly wrong.
        unchecked: What could not be checked.
        num_checks: Number of targets that were looked up and of keywords that were checked.
        targets: All targets, as written.
        foreign: Source files of code outside the well-known packages, and the targets that run it.
    """

    problems: list[AmcliError] = field(default_factory=list)
    unchecked: list[Unchecked] = field(default_factory=list)
    num_checks: int = 0
    targets: list[str] = field(default_factory=list)
    foreign: dict[Path, list[str]] = field(default_factory=dict)


def check_targets(config: Config) -> TargetCheck:
    """Checks the sections that the engine builds, and every `_target_` inside them."""
    found, sources = TargetCheck(), Sources()
    sections = [pair for name in CALLED_SECTIONS for pair in sections_with_target(config.get(name), (name,))]
    for path, section in sections[:MAX_TARGETS]:
        try:
            _check(config, path, section, found, sources)
        except ConfigError as error:
            found.problems.append(error)
    if len(sections) > MAX_TARGETS:
        rest = len(sections) - MAX_TARGETS
        found.unchecked.append(Unchecked(f"{rest} more targets", f"only the first {MAX_TARGETS} are looked up"))
    found.problems += trust_problems(config, sources=sources)
    return found


def check_for_certain(config: Config, unchecked: Iterable[Unchecked]) -> None:
    """Imports the targets that source does not show, and holds the keywords of their sections to what they take.

    Raises:
        ConfigError: A target cannot be imported or called, or does not take its keywords.
    """
    problems: list[AmcliError] = []
    for path in [each.path for each in unchecked if each.path is not None]:
        section, origin = config.at(path), config.origin((*path, TARGET))
        target = resolve_env(section[TARGET], origin)
        try:
            signature = signature_of(resolve_target(target, origin, dotted((*path, TARGET))))
        except ConfigError as error:
            problems.append(error)
            continue
        problems += _keyword_problems(config, path, target, signature) if signature is not None else ()
    if problems:
        raise one_error(problems)


def _names_of_instances(sources: Sources, owner: Definition) -> tuple[str, ...]:
    """What the class itself takes: `from_pretrained` of a configuration passes its keywords on to it."""
    try:
        return call_signature(sources, owner).names if owner.is_class else ()
    except Undecided:
        return ()


def one_error(problems: Sequence[AmcliError]) -> AmcliError:
    """The error that lists all problems; the problem itself, if there is one. A `DataError` if all of them are."""
    if len(problems) == 1:
        return problems[0]
    kind = DataError if all(isinstance(problem, DataError) for problem in problems) else ConfigError
    count = f"{len(problems)}" if len(problems) <= MAX_PROBLEMS else f"more than {MAX_PROBLEMS}"
    return kind(f"{count} problems in the configuration", problems=problems[:MAX_PROBLEMS])


def _check(config: Config, path: KeyPath, section: Mapping[str, Any], found: TargetCheck, sources: Sources) -> None:
    key = (*path, TARGET)
    origin = config.origin(key)
    target = resolve_env(section[TARGET], origin)
    if not isinstance(target, str):
        if len(path) > 1:  # `checked` reports it for outer sections
            raise ConfigError(f"{dotted(key)} is {target!r}, but it must be text", where=str(origin))
        return
    found.targets.append(target)
    if origin.kind == "checkpoint" and not is_known_name(target) and not is_started_here(target, origin, sources):
        return  # `trust_problems` reports it
    result = static_target(resolved(target), origin, dotted(key), sources)
    _check_definition(target, result, Place(origin, dotted(key)), found, sources)
    if path == ("optimizer",):
        of_whole = (
            facts_in_source(sources, result.definition, OptimizerFacts).options_of_whole if result.definition else ()
        )
        found.problems += param_group_problems(config, target, result.signature, of_whole)
    found.num_checks += 1
    given = _given(config, path)
    if result.signature is None:
        what = f"the keywords of `{target}`"
        found.unchecked.append(Unchecked(what, f"{origin}: {result.unchecked}", path))
        return
    found.num_checks += len(given)
    found.problems += _keyword_problems(config, path, target, result.signature)
    if result.definition is not None:
        name = resolved(target).replace(":", ".").rpartition(".")[2]
        # The check of the schedule says what is wrong with the rate.
        values = [each for each in given if (*path, each) != ("optimizer", "lr")]
        found.problems += value_problems(config, path, values, result.definition, sources, name=name)
    if result.signature.takes_any:
        _check_passed_on(config, path, target, result, found, sources)


def _given(config: Config, path: KeyPath) -> list[str]:
    return [name for name in config.at(path) if name not in {TARGET, *ENGINE_KEYS.get(dotted(path), ())}]


def _keyword_problems(config: Config, path: KeyPath, target: str, signature: Signature) -> list[ConfigError]:
    supplied, runtime = SUPPLIED.get(dotted(path), ()), RUNTIME.get(str(path[0]), ())
    return keyword_problems(signature, target, _given(config, path), config, path, supplied=supplied, runtime=runtime)


def _check_passed_on(
    config: Config, path: KeyPath, target: str, result: StaticTarget, found: TargetCheck, sources: Sources
) -> None:
    """Keywords that only `**kwargs` takes: one that looks like a name that it knows is a mistake, others are listed."""
    if result.signature is None or result.definition is None:
        return
    known = {*result.signature.names, *_names_of_instances(sources, result.definition)}
    with suppress(Undecided, OSError):
        known |= words_of_kwargs(sources, result.definition)
    unknown = [name for name in _given(config, path) if name not in known]
    # Code of the user's own may well take both `layer` and `layers`.
    alike = known if _is_well_known(result.definition.module) else ()
    misspelt = {name: match for name in unknown if (match := nearest(name, alike, cutoff=_ALIKE))}
    for name, match in misspelt.items():
        message = f"{dotted(path)}: `{target}` knows no `{name}`"
        where = str(config.key_origin((*path, name)))
        found.problems.append(ConfigError(message, where=where, help=f"did you mean `{match}`?"))
    passed = [name for name in unknown if name not in misspelt]
    found.num_checks -= len(passed)
    for name in passed:
        found.unchecked.append(
            Unchecked(f"`{dotted((*path, name))}`", f"`{target}` takes any keyword and passes it on")
        )


def _is_well_known(module: Module) -> bool:
    return module.name.partition(".")[0] in _WELL_KNOWN


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
        if module.path is not None and not _is_well_known(module):
            targets = found.foreign.setdefault(module.path, [])
            targets += [] if target in targets else [target]


def param_group_problems(
    config: Config, target: str, signature: Signature | None, of_whole: Collection[str]
) -> Iterator[ConfigError]:
    """What is wrong with the rules.

    Args:
        config: The configuration.
        target: The optimizer as the user wrote it.
        signature: What the optimizer takes; None if unknown, and options are then not checked.
        of_whole: Options that hold for the whole optimizer (`OptimizerFacts.options_of_whole`).
    """
    rules = config.get(dotted(_GROUPS))
    if rules is None:
        return
    if not isinstance(rules, list):
        message = f"{dotted(_GROUPS)} must be a list of {{pattern: ..., lr_mult: ...}}"
        yield ConfigError(message, where=str(config.origin(_GROUPS)))
        return
    for index, rule in enumerate(rules):
        path = (*_GROUPS, index)
        if not isinstance(rule, Mapping) or not isinstance(rule.get("pattern"), str) or not rule["pattern"]:
            message = f"{dotted(path)} must be a section with a `pattern` of parameter names"
            yield ConfigError(
                message, where=str(config.origin(path)), help="for example {pattern: 'wte*', lr_mult: 0.1}"
            )
            continue
        yield from _of_rule(config, path, rule, target, signature, of_whole)


def _of_rule(
    config: Config,
    path: KeyPath,
    rule: Mapping[str, Any],
    target: str,
    signature: Signature | None,
    of_whole: Collection[str],
) -> Iterator[ConfigError]:
    for name in ("lr_mult", "weight_decay"):
        try:
            value = resolve_env(rule.get(name, 0.0), config.origin((*path, name)))
        except ConfigError as error:
            yield error
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            message = f"{dotted((*path, name))} is {value!r}, but it must be a number of at least 0"
            yield ConfigError(message, where=str(config.origin((*path, name))))
    has_muon = signature is None or "hidden_names" in signature.names
    if "muon" in rule and (not has_muon or not isinstance(rule["muon"], bool)):
        message = f"`{target}` does not choose between Muon and AdamW" if not has_muon else "it must be true or false"
        where = str(config.key_origin((*path, "muon")))
        yield ConfigError(f"{dotted((*path, 'muon'))} is {rule['muon']!r}, but {message}", where=where)
    if signature is None or signature.takes_any:
        return
    options = [name for name in signature.names if name not in ("params", "lr", "hidden_names", *of_whole)]
    for name in rule:
        if name not in {*_OWN, "muon", *options}:
            message = f"{dotted(path)}: neither a rule nor `{target}` takes `{name}`"
            help_ = hint(name, [*_OWN, *options])
            if name == "lr" or (name in of_whole and name.endswith("_lr")):
                help_ = "lr_mult is a factor on the rate of every step"
            elif name in of_whole:
                help_ = f"beside `{TARGET}` it holds for the whole optimizer"
            yield ConfigError(message, where=str(config.key_origin((*path, name))), help=help_)
