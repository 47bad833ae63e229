"""What differs between two configurations."""

from __future__ import annotations

from typing import Any, NamedTuple

from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.emit import flat

ABSENT = "(absent)"


class Change(NamedTuple):
    """One key whose value differs; `ABSENT` where a side does not have it."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}"


def differences(old: Config, new: Config) -> list[Change]:
    """The keys with different values, in the order of `new`; origins do not count.

    >>> [str(change) for change in differences(Config({"a": 1}), Config({"a": 2}))]
    ['a: 1 -> 2']
    """
    before = {key: value for key, value, _ in flat(old)}
    after = {key: value for key, value, _ in flat(new)}
    keys = [*after, *(key for key in before if key not in after)]
    changes = [Change(key, before.get(key, ABSENT), after.get(key, ABSENT)) for key in keys]
    return [change for change in changes if change.old != change.new]
