"""What a `_target_` names and what it takes, found by reading source: nothing is imported or run.

Three answers: a signature; found, but not checkable, with the reason; or missing, as the same error that the import
would give (`target_errors.py`).
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from automodel_cli.engine.config.origin import Origin
from automodel_cli.engine.config.signature import Signature
from automodel_cli.engine.config.source_modules import Module, Sources, Undecided
from automodel_cli.engine.config.source_names import Definition, Entity, lookup, names_like
from automodel_cli.engine.config.source_signatures import AbsentMember, call_signature, method_signature
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
