"""From a command line's files, overrides and keys to unset to the final configuration with its defaults."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from automodel_cli.engine.config.config import Config, apply_overrides, from_parsed, read_configs
from automodel_cli.engine.config.emit import flat
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

    Keys of our own sections that nobody set, or that `unset` names, stand in the result with their defaults.
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
            config = config.without((section.name,))  # written without keys, it says nothing
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
        ConfigError: There is no such key, or it is an element of a list, whose neighbours would move.
    """
    for key in keys:
        path: KeyPath = tuple(key.split("."))
        where = f"--unset {key}"
        if not config.has(key):
            # A key that nobody has set is at its default already: what was asked for holds.
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
    """Where `pretrain` puts the embedded text if it is not there yet; None for a configuration with data of its own."""
    pattern = config.get("dataset.file_pattern")
    is_builtin = config.origin(("dataset", "file_pattern")).source == BUILTIN_SOURCE
    return Path(pattern).parent if is_builtin and isinstance(pattern, str) else None
