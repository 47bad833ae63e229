"""`_target_`: from an import path or `file.py:object` to the object itself.

Errors tell apart what people confuse: the package is not installed, the module is broken (the
module's own exception is chained), the object is not in it, or it is not callable. What a checkpoint
names without consent must be known to amcli (`trust.py`).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from automodel_cli.engine.config.aliases import resolved
from automodel_cli.engine.config.origin import Origin
from automodel_cli.engine.config.target_errors import (
    Place,
    malformed,
    no_attribute,
    no_file,
    not_callable,
    not_installed,
)
from automodel_cli.engine.config.trust import is_buildable, is_known_below, is_known_name, is_started_here, untrusted
from automodel_cli.errors import ConfigError

# What the modules of `file.py:object` are called in sys.modules.
_FILE_PREFIX = "_amcli_target_"


def resolve_target(target: str, origin: Origin, key: str) -> Callable[..., Any]:
    """The callable that `target` names.

    Args:
        target: `package.module.object`, or `path/file.py:object` relative to the file that names it.
        origin: Where the text stands; reported in errors, and the start of relative paths.
        key: The configuration key, such as `model._target_`.

    Raises:
        ConfigError: See the module's header.
    """
    place = Place(origin, key)
    is_trusted = origin.kind != "checkpoint" or is_started_here(target, origin)
    if not is_trusted and not is_known_name(target):
        raise untrusted(target, place)
    named, target = target, resolved(target)
    path, colon, name = target.rpartition(":")
    if colon and path.endswith(".py"):
        found: Any = _attribute(_load_file(path, name, origin, key), name, target, origin, key)
    else:
        module, names = _import(target, place)
        if not is_trusted and not is_known_below(names):
            raise untrusted(named, place)
        found = module
        for below in names:
            found = _attribute(found, below, target, origin, key)
    if not callable(found):
        raise not_callable(target, type(found).__name__, place)
    if not is_trusted and not is_buildable(found):
        raise untrusted(named, place)
    return found  # type: ignore[no-any-return]  # just shown to be callable


def _import(target: str, place: Place) -> tuple[ModuleType | None, list[str]]:
    """The innermost module of an import path, and the names below it."""
    parts = target.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise malformed(target, place)
    module: ModuleType | None = None
    for depth in range(len(parts)):
        name = ".".join(parts[: depth + 1])
        if module is not None and not _is_package(module):
            return module, parts[depth:]
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise _broken(name, error, place) from error
            if module is None:
                raise not_installed(name, place) from error
            return module, parts[depth:]
        except (Exception, SystemExit) as error:
            raise _broken(name, error, place) from error
    return module, []


def _is_package(module: ModuleType) -> bool:
    return getattr(module, "__path__", None) is not None


def _attribute(owner: Any, name: str, target: str, origin: Origin, key: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError as error:
        kind = "module" if isinstance(owner, ModuleType) else "object"
        owner_name = getattr(owner, "__name__", type(owner).__name__)
        if owner_name.startswith(_FILE_PREFIX):
            owner_name = Path(str(owner.__file__)).name
        public = [candidate for candidate in dir(owner) if not candidate.startswith("_")]
        raise no_attribute(kind, owner_name, name, public, Place(origin, key)) from error


def _load_file(path: str, wanted: str, origin: Origin, key: str) -> ModuleType:
    file = (origin.directory() / Path(path).expanduser()).resolve()
    if not file.is_file():
        raise no_file(file, wanted, Place(origin, key))
    # The name is derived from the path, so that two files of one name do not shadow each other
    # and a file named twice is run once.
    digest = hashlib.sha256(str(file).encode()).hexdigest()[:12]
    name = f"{_FILE_PREFIX}{digest}_{file.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise Place(origin, key).error(f"{file} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look the module up by name while it runs
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _broken(str(file), error, Place(origin, key)) from error
    return module


def _broken(name: str, error: BaseException, place: Place) -> ConfigError:
    found = f"importing `{name}` raised {type(error).__name__}: {error}"
    return place.error(found, "--traceback shows where in that module")
