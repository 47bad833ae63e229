"""What `blocked.py` refuses, as far as source tells it: before anything is imported or run.

An object that only running code shows for what it is passes here, and is refused when it is resolved.
"""

from __future__ import annotations

import ast

from automodel_cli.engine.config.blocked import why_refused
from automodel_cli.engine.config.source_modules import Module, Sources
from automodel_cli.engine.config.source_names import Builtin, Class, Entity, Function, Unknown, dotted_name, resolve
from automodel_cli.engine.config.target_errors import Place, blocked


def refuse_by_source(sources: Sources, owner: Module, name: str, found: Entity, target: str, place: Place) -> None:
    """Refuses by where source shows that `owner.name` is defined; else by the names it is asked for and imported.

    Raises:
        ConfigError: One of them is refused.
    """
    if isinstance(found, Builtin):
        refuse_name("builtins", found.name, target, place)
    elif isinstance(found, Function | Class):
        refuse_name(found.module.name, getattr(found.node, "name", "<lambda>"), target, place)
    elif isinstance(found, Unknown):
        spelled_names = _spelled(sources, owner, name) if owner.path is not None else []
        for spelled in spelled_names or [f"{owner.name}.{name}"]:
            module, _, leaf = spelled.rpartition(".")
            refuse_name(module, leaf, target, place)


def refuse_name(module: str, name: str, target: str, place: Place) -> None:
    """Refuses a callable by its own module and name.

    Raises:
        ConfigError: It is refused.
    """
    why = why_refused(module, name)
    if why is not None:
        raise blocked(target, f"`{module}.{name}` {why}", place)


def _spelled(sources: Sources, module: Module, name: str) -> list[str]:
    """Import paths that the bindings of a name spell, such as `os.system` for `run = partial(os.system, "ls")`."""
    found: list[str | None] = []
    for binding in sources.scope(module).bindings.get(name, []):
        if binding.alias is not None:
            found.append(dotted_name(sources, module, ast.Name(name)))
        elif isinstance(binding.value, ast.Call):
            is_partial = dotted_name(sources, module, binding.value) == "functools.partial"
            found += [_followed(sources, module, part) for part in binding.value.args[:1] if is_partial]
        elif binding.value is not None:
            found.append(_followed(sources, module, binding.value))
    return [spelled for spelled in found if spelled]


def _followed(sources: Sources, module: Module, node: ast.expr) -> str | None:
    """The import path of an expression: of `logging.os.system` where `os` itself has it."""
    if isinstance(node, ast.Attribute):
        owner = resolve(sources, module, node.value)
        if isinstance(owner, Module):
            return f"{owner.name}.{node.attr}"
    return dotted_name(sources, module, node)
