"""What a `_target_` names and what it takes, found by reading source: nothing is imported or run.

Four answers: a signature; found, but not checkable, with the reason; missing, as the same error
that the import would give (`target_errors.py`); or a value that cannot be called.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from automodel_cli.engine.config.origin import Origin
from automodel_cli.engine.config.signature import Signature
from automodel_cli.engine.config.source_classes import AbsentMember, attribute_signature, call_signature
from automodel_cli.engine.config.source_modules import Module, SourceLimitError, Sources
from automodel_cli.engine.config.source_names import (
    Absent,
    Builtin,
    Class,
    Entity,
    Function,
    Unknown,
    Value,
    lookup,
    names_like,
)
from automodel_cli.engine.config.suggest import nearest
from automodel_cli.engine.config.target_errors import (
    Place,
    malformed,
    no_attribute,
    no_file,
    not_callable,
    not_installed,
)


@dataclass(frozen=True)
class StaticTarget:
    """What source tells about a target.

    Args:
        signature: What calling it takes; None where source does not tell.
        unchecked: Why not; None if there is a signature.
        definition: The function or class that the name stands for, where it was found.
        modules: What is imported for it, and where it is defined, as far as source shows it.
    """

    signature: Signature | None
    unchecked: str | None = None
    definition: Function | Class | None = None
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
    path, colon, name = target.rpartition(":")
    try:
        if colon and path.endswith(".py"):
            file = (origin.directory() / Path(path).expanduser()).resolve()
            if not file.is_file():
                raise no_file(file, name, place)
            module = sources.file(file)
            return _located(module, _member(sources, module, [name], target, place))
        parts = target.split(".")
        if len(parts) < 2 or not all(part.isidentifier() for part in parts):
            raise malformed(target, place)
        module, rest = _longest_module(sources, parts, place)
        return _located(module, _member(sources, module, rest, target, place))
    except SyntaxError as error:
        return _unchecked(f"{error.filename}:{error.lineno or 1} cannot be read: {error.msg}")
    except (SourceLimitError, OSError) as error:
        return _unchecked(str(error))


def _located(module: Module, found: StaticTarget) -> StaticTarget:
    defined_in = (found.definition.module,) if found.definition else ()
    return replace(found, modules=tuple(dict.fromkeys((module, *defined_in))))


def _longest_module(sources: Sources, parts: list[str], place: Place) -> tuple[Module, list[str]]:
    """The innermost module on the way, as the import would find it, and the names below it."""
    module = sources.module(parts[0])
    if module is None:
        raise not_installed(parts[0], place)
    for index, part in enumerate(parts[1:], start=1):
        inner = sources.submodule(module, part)
        if inner is None:
            return module, parts[index:]
        module = inner
    return module, []


def _member(sources: Sources, module: Module, names: list[str], target: str, place: Place) -> StaticTarget:
    found: Entity = module
    for index, name in enumerate(names):
        if isinstance(found, Module):
            owner = found
            found = lookup(sources, owner, name)
            if isinstance(found, Absent):
                raise no_attribute("module", _short(owner), name, names_like(sources, owner, name), place)
            if isinstance(found, Unknown):
                return _unchecked(_with_hint(sources, found, name))
        elif isinstance(found, Class) and index == len(names) - 1:
            return _method(sources, found, name, target, place)
        elif isinstance(found, Builtin):
            return _unchecked("it is built into Python")
        else:
            return _unchecked(f"`{name}` is not looked up below `{names[index - 1]}`")
    if isinstance(found, Value | Module):
        raise not_callable(target, found.type_name if isinstance(found, Value) else "module", place)
    definition = found if isinstance(found, Function | Class) else None
    return _result(sources, call_signature(sources, found), definition)


def _method(sources: Sources, owner: Class, name: str, target: str, place: Place) -> StaticTarget:
    found = attribute_signature(sources, owner, name)
    if isinstance(found, AbsentMember):
        raise no_attribute("object", owner.node.name, name, found.names, place)
    if isinstance(found, Value):
        raise not_callable(target, found.type_name, place)
    return _result(sources, found, owner, name)


def _result(
    sources: Sources, found: Signature | Unknown, definition: Function | Class | None, name: str = ""
) -> StaticTarget:
    if isinstance(found, Unknown):
        return StaticTarget(None, _with_hint(sources, found, name), definition)
    return StaticTarget(found, None, definition)


def _unchecked(reason: str) -> StaticTarget:
    return StaticTarget(None, reason)


def _with_hint(sources: Sources, found: Unknown, name: str) -> str:
    """The reason, and the name that may have been meant, where the name itself was not seen."""
    names = found.names if found.owner is None else names_like(sources, found.owner, name)
    match = None if name in names else nearest(name, names)
    return f"{found.reason}; did you mean `{match}`?" if match else found.reason


def _short(module: Module) -> str:
    # A local file has its path as its name; at run time its errors show the file's stem.
    return module.path.name if module.path is not None and str(module.path) == module.name else module.name
