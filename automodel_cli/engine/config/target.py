"""`_target_`: from an import path or `file.py:object` to the object itself.

Errors tell apart what people confuse: the package is not installed, the module is broken (the
module's own exception is chained), the object is not in it, or it is not callable. What a checkpoint
names must be known to amcli (`trust.py`), and what `blocked.py` lists is refused to everybody.
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
from automodel_cli.engine.config.blocked import refusal
from automodel_cli.engine.config.origin import Origin
from automodel_cli.engine.config.target_errors import (
    Place,
    blocked,
    malformed,
    no_attribute,
    no_file,
    not_callable,
    not_installed,
)
from automodel_cli.engine.config.trust import is_built_by_amcli, may_import, untrusted
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
    target = resolved(target)
    path, colon, name = target.rpartition(":")
    if colon and path.endswith(".py"):
        if origin.kind == "checkpoint":
            raise untrusted(target, Place(origin, key))
        found: Any = _attribute(_load_file(path, name, origin, key), name, target, origin, key)
    else:
        found = _import(target, origin, key)
    if not callable(found):
        raise not_callable(target, type(found).__name__, Place(origin, key))
    if origin.kind == "checkpoint" and not is_built_by_amcli(_own_module(found)):
        raise untrusted(target, Place(origin, key))
    refuse_blocked(found, target, Place(origin, key))
    return found  # type: ignore[no-any-return]  # just shown to be callable


def refuse_blocked(found: object, target: str, place: Place) -> None:
    """Refuses what comes down to a call that no part of a training run makes.

    Raises:
        ConfigError: `found` is one.
    """
    why = refusal(found)
    if why is not None:
        raise blocked(target, why, place)


def _import(target: str, origin: Origin, key: str) -> Any:
    parts = target.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise malformed(target, Place(origin, key))
    if not may_import(target, origin):
        raise untrusted(target, Place(origin, key))
    module: ModuleType | None = None
    depth = 0
    for length in range(1, len(parts) + 1):
        name = ".".join(parts[:length])
        if module is not None and not _is_package(module):
            break
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise _broken(name, error, origin, key) from error
            if module is None:
                raise not_installed(name, Place(origin, key)) from error
            break
        except Exception as error:
            raise _broken(name, error, origin, key) from error
        depth = length
    found: Any = module
    for length in range(depth, len(parts)):
        found = _attribute(found, parts[length], target, origin, key)
    return found


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
    except Exception as error:
        del sys.modules[name]
        raise _broken(str(file), error, origin, key) from error
    return module


def _broken(name: str, error: Exception, origin: Origin, key: str) -> ConfigError:
    found = f"importing `{name}` raised {type(error).__name__}: {error}"
    return Place(origin, key).error(found, "--traceback shows where in that module")


def _own_module(found: Any) -> str:
    """Where the object itself was defined, so that an alias cannot smuggle another in."""
    owner = getattr(found, "__self__", None)
    return getattr(owner if isinstance(owner, type) else found, "__module__", "") or ""
