"""From a command line's files and overrides to the final configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from automodel_cli.engine.config.builtin import builtin_config
from automodel_cli.engine.config.check import with_defaults
from automodel_cli.engine.config.config import Config, apply_overrides, read_configs
from automodel_cli.engine.config.unset import apply_unsets


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
