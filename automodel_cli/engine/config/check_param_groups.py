"""The rules of `optimizer.param_groups`, as far as they can be judged without the model; torch-free."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from automodel_cli.engine.config.config import TARGET, Config
from automodel_cli.engine.config.env import resolve_env
from automodel_cli.engine.config.origin import KeyPath, dotted
from automodel_cli.engine.config.signature import Signature
from automodel_cli.engine.config.suggest import hint
from automodel_cli.errors import ConfigError

_PATH: KeyPath = ("optimizer", "param_groups")
_OWN = ("pattern", "lr_mult", "weight_decay")


def param_group_problems(
    config: Config, target: str, signature: Signature | None, of_whole: Collection[str]
) -> Iterator[ConfigError]:
    """What is wrong with the rules.

    Args:
        config: The configuration.
        target: The optimizer as the user wrote it.
        signature: Of the optimizer; None where it is not known, and options are then not checked.
        of_whole: Options that hold for the whole optimizer (`OptimizerFacts.options_of_whole`).
    """
    rules = config.get(dotted(_PATH))
    if rules is None:
        return
    if not isinstance(rules, list):
        message = f"{dotted(_PATH)} must be a list of {{pattern: ..., lr_mult: ...}}"
        yield ConfigError(message, where=str(config.origin(_PATH)))
        return
    for index, rule in enumerate(rules):
        path = (*_PATH, index)
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
