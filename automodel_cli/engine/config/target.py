"""`_target_`: from an import path or `file.py:object` to the object itself, or to what its source says of it.

`resolve_target` imports; `static_target` reads source and imports nothing. Both give the same errors
(`target_errors.py`), which tell apart what people confuse: the package is not installed, the module is broken (the
module's own exception is chained), the object is not in it, or it is not callable. What a checkpoint names without
consent must be known to amcli (`trust.py`).
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from automodel_cli.engine.config.aliases import resolved
from automodel_cli.engine.config.origin import Origin
from automodel_cli.engine.config.source_modules import Module, Sources, Undecided
from automodel_cli.engine.config.source_names import Definition, Entity, lookup, names_like
from automodel_cli.engine.config.source_signatures import AbsentMember, call_signature, method_signature
from automodel_cli.engine.config.suggest import nearest
from automodel_cli.engine.config.target_errors import (
    Place,
    Signature,
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


@dataclass(frozen=True)
class StaticTarget:
    """What source shows of a target: what it takes, or why that is not known.

    Args:
        signature: What calling it takes; None where source does not tell.
        unchecked: Why not; None if there is a signature.
        definition: The function or class that the name stands for, where it was found.
        modules: What is imported for it, and where it is defined, as far as source shows it.
    """

    signature: Signature | None
    unchecked: str | None = None
    definition: Definition | None = None
    modules: tuple[Module, ...] = ()


def static_target(target: str, origin: Origin, key: str, sources: Sources | None = None) -> StaticTarget:
    """Looks the target up in source.

    Args:
        target: `package.module.object`, or `path/file.py:object` relative to the file that names it.
        origin: Where the text stands; reported in errors, and the start of relative paths.
        key: The configuration key, such as `model._target_`.
        sources: Keeps what was read, for several targets of one configuration.

    Raises:
        ConfigError: It certainly does not exist or cannot be called.
    """
    sources = sources or Sources()
    place = Place(origin, key)
    module, names = _module(sources, target, place)
    definition: Definition | None = None
    signature, unchecked = None, None
    try:
        owner, name = _followed(sources, module, names, place)
        definition = owner if isinstance(owner, Definition) else None
        if definition is None:
            raise not_callable(target, "module", place)
        signature = method_signature(sources, definition, name) if name else call_signature(sources, definition)
        if signature is None:
            raise not_callable(target, "property", place)
    except AbsentMember as error:
        raise no_attribute("object", names[-2], names[-1], error.names, place) from error
    except Undecided as error:
        unchecked = _with_hint(sources, error, names)
    except OSError as error:
        unchecked = str(error)
    defined_in = (definition.module,) if definition else ()
    return StaticTarget(signature, unchecked, definition, tuple(dict.fromkeys((module, *defined_in))))


def _module(sources: Sources, target: str, place: Place) -> tuple[Module, list[str]]:
    """The file, or the innermost module on the way, as the import would find it; and the names below it."""
    path, colon, name = target.rpartition(":")
    if colon and path.endswith(".py"):
        file = (place.origin.directory() / Path(path).expanduser()).resolve()
        if not file.is_file():
            raise no_file(file, name, place)
        return Module(str(file), file), [name]
    parts = target.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise malformed(target, place)
    module = sources.module(parts[0])
    if module is None:
        raise not_installed(parts[0], place)
    for index, part in enumerate(parts[1:], start=1):
        inner = sources.submodule(module, part)
        if inner is None:
            return module, parts[index:]
        module = inner
    return module, []


def _followed(sources: Sources, module: Module, names: list[str], place: Place) -> tuple[Entity, str]:
    """What the names lead to, and the name of its member that the last of them is, if it is one of a class."""
    found: Entity = module
    for index, name in enumerate(names):
        if isinstance(found, Module):
            owner, entity = found, lookup(sources, found, name)
            if entity is None:
                raise no_attribute("module", _short(owner), name, names_like(sources, owner, name), place)
            found = entity
        elif isinstance(found.node, ast.ClassDef) and index == len(names) - 1:
            return found, name
        else:
            raise Undecided(f"`{name}` is not looked up below `{names[index - 1]}`")
    return found, ""


def _with_hint(sources: Sources, found: Undecided, names: list[str]) -> str:
    """The reason, and the name that may have been meant, where the name itself was not seen."""
    try:
        known = names_like(sources, found.owner, names[0]) if found.owner else []
    except Undecided:
        known = []
    match = next((nearest(name, known) for name in names if known and name not in known), None)
    return f"{found}; did you mean `{match}`?" if match else str(found)


def _short(module: Module) -> str:
    # A local file has its path as its name; at run time its errors show the file's stem.
    return module.path.name if module.path is not None and str(module.path) == module.name else module.name
