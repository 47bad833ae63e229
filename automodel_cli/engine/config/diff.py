"""What differs between two configurations, and what a configuration changes of the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from automodel_cli.engine.config.config import TARGET, Config
from automodel_cli.engine.config.emit import absolute_target, flat, label
from automodel_cli.engine.config.load import builtin_config, with_defaults
from automodel_cli.engine.config.origin import KeyPath

ABSENT = "(absent)"


class Change(NamedTuple):
    """One key whose value differs; `ABSENT`, without an origin, where a side does not have it."""

    key: str
    old: Any
    new: Any
    old_origin: str | None = None
    new_origin: str | None = None

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}"


def differences(old: Config, new: Config) -> list[Change]:
    """The keys with different values, in the order of `new`; origins do not count.

    >>> [str(change) for change in differences(Config({"a": 1}), Config({"a": 2}))]
    ['a: 1 -> 2']
    """
    before, after = _leaves(old), _leaves(new)
    keys = [*after, *(key for key in before if key not in after)]
    nothing = (ABSENT, None)
    found = [(key, before.get(key, nothing), after.get(key, nothing)) for key in keys]
    return [Change(key, a, b, from_a, from_b) for key, (a, from_a), (b, from_b) in found if not _same(a, b)]


def changed_only(config: Config, *, built_in: bool) -> Config:
    """The part of a configuration that says something beyond the defaults.

    Args:
        config: With the defaults of our own sections in it.
        built_in: Whether it started from the built-in configuration, which then is the base. A
            configuration of the user's own is compared with the defaults of the keys alone: that a
            value happens to equal one of the built-in run would be no reason to leave it out.
    """
    base = with_defaults(builtin_config() if built_in else Config({}))
    changed = {change.key for change in differences(base, config)}
    return Config(_restricted(config.values, (), changed), config.origins, config.key_origins)


def _leaves(config: Config) -> dict[str, tuple[Any, str | None]]:
    """Value and origin of each leaf; file targets absolute, as a checkpoint has them."""
    found: dict[str, tuple[Any, str | None]] = {}
    for key, value, origin in flat(config):
        is_target = key.rpartition(".")[2] == TARGET and isinstance(value, str)
        found[key] = (absolute_target(value, origin) if is_target else value, label(config, key, value))
    return found


def _same(a: Any, b: Any) -> bool:
    """Equality of YAML values: 1 is 1.0, but not true, and a NaN is a NaN."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and (a == b or (a != a and b != b))


def _restricted(node: Mapping[str, Any], path: KeyPath, changed: set[str]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in node.items():
        here = (*path, name)
        if isinstance(value, Mapping) and value:
            if inner := _restricted(value, here, changed):
                kept[name] = inner
        elif ".".join(map(str, here)) in changed:
            kept[name] = value
    return kept
