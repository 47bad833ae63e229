"""From a command line's files, overrides and keys to unset to the final configuration with its defaults.

The built-in configuration takes the place of the files if none is named; `changed_only` takes the defaults out again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from automodel_cli.engine.config.config import Config, apply_overrides, from_parsed, read_configs
from automodel_cli.engine.config.emit import differences, flat
from automodel_cli.engine.config.origin import DEFAULT, KeyPath, dotted
from automodel_cli.engine.config.sections import is_required, own_sections, section_fields
from automodel_cli.engine.config.suggest import hint
from automodel_cli.engine.config.yaml_reader import parse_yaml
from automodel_cli.errors import ConfigError

BUILTIN_PATH = Path(__file__).parent / "quickstart.yaml"
BUILTIN_SOURCE = "built-in quickstart.yaml"


def load_config(
    paths: Sequence[Path] | None, overrides: Sequence[str] = (), unset: Sequence[str] = (), *, trust: bool = False
) -> Config:
    """The files merged left to right (the built-in configuration if there are none), then the overrides.

    Keys of our own sections that are not set, or that `unset` names, get their defaults.
    With `trust` the user consents to run what a checkpoint's configuration names.

    Raises:
        ConfigError: A file or an override cannot be read, or a key to unset does not exist.
    """
    base = read_configs(paths, trust=trust) if paths else builtin_config()
    return with_defaults(apply_unsets(apply_overrides(base, overrides), unset))


def with_defaults(config: Config) -> Config:
    """The configuration with every key of our own sections present; the origin of the added is `default`."""
    for section in own_sections(config.values):
        if section.name and config.get(section.name, ...) is None and not any(_shown_defaults(section)):
            config = config.without((section.name,))  # a section without keys has no effect
        prefix: KeyPath = (section.name,) if section.name else ()
        for name, default in _shown_defaults(section):
            path = (*prefix, name)
            if not config.has(dotted(path)) and _is_section(config, prefix):
                config = config.with_value(path, default, DEFAULT)
    return config


def _shown_defaults(section: type[Any]) -> Iterator[tuple[str, Any]]:
    for name, item in section_fields(section).items():
        if not is_required(item) and not item.metadata["quiet"]:
            yield name, item.default


def _is_section(config: Config, path: KeyPath) -> bool:
    node = config.at(path) if config.has(dotted(path)) else None
    return not path or node is None or isinstance(node, Mapping)


def apply_unsets(config: Config, keys: Iterable[str]) -> Config:
    """The configuration without `keys`; those of our own sections are then at their defaults.

    Raises:
        ConfigError: The key does not exist, or is an element of a list, whose neighbours would move.
    """
    for key in keys:
        path: KeyPath = tuple(key.split("."))
        where = f"--unset {key}"
        if not config.has(key):
            # A key that is not set is at its default already.
            if with_defaults(config).has(key):
                continue
            help_ = hint(key, all_keys(with_defaults(config)))
            raise ConfigError(f"there is no key `{key}` to unset", where=where, help=help_)
        if not isinstance(config.at(path[:-1]), Mapping):
            message = f"`{key}` is an element of a list, and only a whole list can be unset"
            raise ConfigError(message, where=where, help=f"--set '{key.rpartition('.')[0]}=[...]' gives the list anew")
        config = config.without(path)
    return config


def all_keys(config: Config) -> list[str]:
    """Every dotted key of the configuration, those of sections included.

    >>> all_keys(Config({"model": {"n_layer": 12}}))
    ['model', 'model.n_layer']
    """
    found: dict[str, None] = {}
    for key, _, _ in flat(config):
        parts = key.split(".")
        found.update({".".join(parts[:length]): None for length in range(1, len(parts) + 1)})
    return list(found)


def builtin_config() -> Config:
    """A small GPT-2 on the embedded corpus; the same text as `examples/quickstart.yaml`."""
    return from_parsed(parse_yaml(BUILTIN_PATH.read_text(encoding="utf-8"), source=BUILTIN_SOURCE, kind="file"))


def embedded_corpus_directory(config: Config) -> Path | None:
    """Directory for the shards of the embedded text; None for a configuration that names its own data."""
    pattern = config.get("dataset.file_pattern")
    is_builtin = config.origin(("dataset", "file_pattern")).source == BUILTIN_SOURCE
    return Path(pattern).parent if is_builtin and isinstance(pattern, str) else None


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
