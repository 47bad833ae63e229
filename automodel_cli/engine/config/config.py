"""The configuration as a value: nested plain data, with the origin of everything in it.

A `Config` is never changed in place: merging and overriding return a new one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from automodel_cli.engine.config.origin import DEFAULT, KeyPath, Kind, Origin, dotted
from automodel_cli.engine.config.secrets import masked_text, masked_value
from automodel_cli.engine.config.sections import REPLACEABLE
from automodel_cli.engine.config.suggest import hint
from automodel_cli.engine.config.yaml_reader import Parsed, parse_value, plain_types, read_yaml
from automodel_cli.errors import ConfigError, UsageError

TARGET = "_target_"
# Maximum number of problems that are listed at once.
MAX_PROBLEMS = 50
_MISSING = object()


@dataclass(frozen=True)
class Config:
    """Values with origins.

    Args:
        values: Nested mappings, lists and scalars; treat as read-only.
        origins: Origin of the value at each path.
        key_origins: Origin of the key at each path, where it differs from the value's.
    """

    values: Mapping[str, Any]
    origins: Mapping[KeyPath, Origin] = field(default_factory=dict)
    key_origins: Mapping[KeyPath, Origin] = field(default_factory=dict)

    def get(self, path: str, default: Any = None) -> Any:
        """The value at a dotted path, or `default` where the path does not exist.

        >>> Config({"model": {"n_layer": 12}}).get("model.n_layer")
        12
        """
        value = self.at(tuple(path.split(".")))
        return default if value is _MISSING else value

    def has(self, path: str) -> bool:
        """Whether the dotted path exists; a null counts as existing."""
        return self.at(tuple(path.split("."))) is not _MISSING

    def at(self, path: KeyPath) -> Any:
        """The value at a path, or a private marker that equals nothing."""
        node: Any = self.values
        for part in path:
            if isinstance(node, Mapping) and part in node:
                node = node[str(part)]
            elif isinstance(node, list) and str(part).isdigit() and int(part) < len(node):
                node = node[int(part)]
            else:
                return _MISSING
        return node

    def origin(self, path: KeyPath) -> Origin:
        """Origin of the value at `path`, or of the nearest section around it.

        A section that is not written, such as one of defaults alone, has the origin of its first value.
        """
        inside = None if path in self.origins or not path else self._first_inside(path)
        if inside is not None:
            return inside
        for length in range(len(path), -1, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return DEFAULT

    def _first_inside(self, path: KeyPath) -> Origin | None:
        found = (origin for known, origin in self.origins.items() if known[: len(path)] == path)
        return next(found, None)

    def key_origin(self, path: KeyPath) -> Origin:
        """Origin of the key at `path`: where an unknown key is reported."""
        return self.key_origins.get(path) or self.origin(path)

    def masked(self) -> Config:
        """This configuration as it may be printed, saved or sent: without the values of secret keys."""
        return Config(masked_value("", self.values), self.origins, self.key_origins)

    def merged(self, other: Config) -> Config:
        """This configuration with `other` laid over it.

        Mappings merge key by key; lists and scalars replace. A section with another `_target_`
        replaces the section whole, since the old keyword arguments belong to the old callable.
        """
        values = plain_types(self.values)
        origins, key_origins = dict(self.origins), dict(self.key_origins)
        mine, mine_by_key, theirs = _subtrees(origins), _subtrees(key_origins), _subtrees(other.origins)

        def lay(below: dict[str, Any], above: Mapping[str, Any], path: KeyPath) -> None:
            for key, value in above.items():
                here = (*path, key)
                old = below.get(key)
                if isinstance(old, dict) and isinstance(value, Mapping) and not _other_target(here, old, value):
                    lay(old, value, here)
                else:
                    for path_below in mine.get(here, ()):
                        del origins[path_below]
                    for path_below in mine_by_key.get(here, ()):
                        del key_origins[path_below]
                    below[key] = plain_types(value)
                    origins.update({p: other.origins[p] for p in theirs.get(here, ())})
                if here in other.key_origins:
                    key_origins[here] = other.key_origins[here]

        lay(values, other.values, ())
        key_origins.update({p: o for p, o in other.key_origins.items() if p not in key_origins})
        return Config(values, origins, key_origins)

    def with_value(self, path: KeyPath, value: Any, origin: Origin) -> Config:
        """A copy in which the value at `path` is `value`; sections on the way are created."""
        values = plain_types(self.values)
        origins, key_origins = dict(self.origins), dict(self.key_origins)
        node: Any = values
        for depth, part in enumerate(path[:-1]):
            if isinstance(node, dict) and node.get(str(part)) is None:
                # The section is created here, so it has this origin too.
                origins[path[: depth + 1]] = origin
                key_origins.pop(path[: depth + 1], None)
            node = _step_into(node, part, path[:depth], origin)
        real_path = _place(node, path, value, origin)
        _forget(origins, real_path)
        _forget(key_origins, real_path)
        origins[real_path] = origin
        return Config(values, origins, key_origins)

    def without(self, path: KeyPath) -> Config:
        """A copy without the key at `path` of a mapping, and without everything below it."""
        values = plain_types(self.values)
        origins, key_origins = dict(self.origins), dict(self.key_origins)
        node: Any = values
        for part in path[:-1]:
            node = node[int(part) if isinstance(node, list) else part]
        del node[path[-1]]
        _forget(origins, path)
        _forget(key_origins, path)
        return Config(values, origins, key_origins)


def from_parsed(parsed: Parsed) -> Config:
    """A `Config` of one parsed YAML document."""
    return Config(parsed.value or {}, parsed.origins, parsed.key_origins)


def read_configs(paths: Sequence[Path], *, trust: bool = False) -> Config:
    """The YAML files merged left to right; a checkpoint directory stands for the `config.yaml` in it.

    Args:
        paths: Files are code, checkpoints are data, also where the `config.yaml` in one is named.
        trust: Whether the user consents to run what the checkpoints name, which makes them code too.

    Raises:
        ConfigError: One of them does not exist, or is no configuration.
    """
    config = Config({})
    for path in paths:
        is_directory = path.is_dir() and (path / "config.yaml").is_file()
        kind: Kind = "checkpoint" if (is_directory or _lies_in_checkpoint(path)) and not trust else "file"
        parsed = read_yaml(path / "config.yaml" if is_directory else path, kind)
        config = config.merged(from_parsed(parsed))
    if not config.values:
        message = "this holds no configuration: it is empty, or has nothing but comments"
        raise ConfigError(message, where=", ".join(map(str, paths)), help="amcli config init my.yaml writes one")
    return config


def _lies_in_checkpoint(path: Path) -> bool:
    """Whether a file is the `config.yaml` of a checkpoint, which came along with it however it is named."""
    file = path.resolve()
    return file.name == "config.yaml" and all((file.parent / name).exists() for name in ("manifest.json", "model"))


def apply_overrides(config: Config, assignments: Iterable[str]) -> Config:
    """Applies `a.b.c=value` assignments in order; values are YAML-typed.

    Raises:
        UsageError: An assignment has no `=` or no key.
        ConfigError: It sets a key below a scalar, or an element beyond a list.
    """
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals or not key or not all(key.split(".")):
            message = f"--set takes KEY=VALUE, got `{masked_text(assignment)}`"
            raise UsageError(message, help="for example --set model.n_layer=24")
        origin = Origin("option", f"--set {key}")
        value = parse_value(text, source=f"--set {key}")
        config = config.with_value(tuple(key.split(".")), value, origin)
    return config


def _other_target(path: KeyPath, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    has_callable = TARGET in old or (len(path) == 1 and path[0] in REPLACEABLE)  # its callable may be our own
    return TARGET in new and has_callable and old.get(TARGET) != new[TARGET]


def _subtrees(paths: Iterable[KeyPath]) -> dict[KeyPath, list[KeyPath]]:
    """Every path at and below each path: a search through all of them per key would take the square of their number."""
    found: dict[KeyPath, list[KeyPath]] = {}
    for path in paths:
        for length in range(1, len(path) + 1):
            found.setdefault(path[:length], []).append(path)
    return found


def _forget(origins: dict[KeyPath, Origin], path: KeyPath) -> None:
    for known in [p for p in origins if p[: len(path)] == path]:
        del origins[known]


def _step_into(node: Any, part: str | int, above: KeyPath, origin: Origin) -> Any:
    """The child of `node` at `part`; a missing or null section is created."""
    if isinstance(node, list):
        return node[_index(node, part, above, origin)]
    if isinstance(node, dict):
        if node.get(str(part)) is None:
            node[str(part)] = {}
        return node[str(part)]
    raise _below_scalar(node, above, origin)


def _place(node: Any, path: KeyPath, value: Any, origin: Origin) -> KeyPath:
    """Puts `value` into `node` at the last part of `path`; returns the path with real indices."""
    part = path[-1]
    if isinstance(node, list):
        index = _index(node, part, path[:-1], origin)
        node[index] = copy.deepcopy(value)
        return (*path[:-1], index)
    if isinstance(node, dict):
        node[str(part)] = copy.deepcopy(value)
        return path
    raise _below_scalar(node, path[:-1], origin)


def _index(node: list[Any], part: str | int, above: KeyPath, origin: Origin) -> int:
    if not str(part).isdigit() or int(part) >= len(node):
        message = f"{dotted(above)} is a list of {len(node)}, and `{part}` is none of its elements"
        raise ConfigError(message, where=str(origin), help=hint(str(part), map(str, range(len(node))), noun="elements"))
    return int(part)


def _below_scalar(node: Any, above: KeyPath, origin: Origin) -> ConfigError:
    found = masked_value(dotted(above), node)
    message = f"{dotted(above)} is the value {found!r}, not a section, so nothing can be set below it"
    return ConfigError(message, where=str(origin))
