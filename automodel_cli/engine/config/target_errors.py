"""The messages about a `_target_` that names nothing that can be called.

Shared by the search in source (`static_target.py`) and the import itself (`target.py`), so that
the parent process and the run say the same about the same mistake.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from automodel_cli.engine.config.aliases import own_module
from automodel_cli.engine.config.origin import Origin
from automodel_cli.engine.config.suggest import hint
from automodel_cli.errors import ConfigError


class Place(NamedTuple):
    """Where a target stands: its origin, and its key such as `model._target_`."""

    origin: Origin
    key: str

    def error(self, message: str, help: str | None = None) -> ConfigError:
        """A `ConfigError` at this place."""
        return ConfigError(f"{self.key}: {message}", where=str(self.origin), help=help)


def malformed(target: str, place: Place) -> ConfigError:
    """Neither of the two forms of a target."""
    return place.error(f"`{target}` is neither an import path (package.module.object) nor file.py:object")


def not_installed(package: str, place: Place) -> ConfigError:
    """The first word of an import path is not there."""
    help_ = f"is it installed here, or is a word missing before it? python: {sys.executable}"
    return place.error(f"the package `{package}` is not installed", help_)


def no_attribute(kind: str, owner: str, name: str, public: Iterable[str], place: Place) -> ConfigError:
    """A module, class or other object has no such name; `public` are those that it has."""
    return place.error(f"the {kind} `{owner}` has no `{name}`", hint(name, public, noun="names in it"))


def not_callable(target: str, type_name: str, place: Place) -> ConfigError:
    """What was found is a value."""
    return place.error(f"`{target}` is a {type_name}, which cannot be called")


def no_file(file: Path, name: str, place: Place) -> ConfigError:
    """The file of `file.py:object` is not there; its neighbours are offered, or what amcli has instead."""
    ours = own_module(file)
    if ours is not None:
        return place.error(f"there is no file {file}", f"amcli has its own: {ours}.{name}")
    neighbours = sorted(item.name for item in file.parent.glob("*.py")) if file.parent.is_dir() else []
    return place.error(f"there is no file {file}", hint(file.name, neighbours, noun=f"Python files in {file.parent}"))
