"""Keys taken out of a configuration: `--unset a.b`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from automodel_cli.engine.config.check import with_defaults
from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.emit import flat
from automodel_cli.engine.config.origin import KeyPath
from automodel_cli.engine.config.suggest import hint
from automodel_cli.errors import ConfigError


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
