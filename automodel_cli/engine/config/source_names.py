"""What a name in a module stands for, by following definitions, imports and re-exports in source.

The answer is a definition, a module, a value, `Absent` where the module certainly has no such
name, or `Unknown` with the reason: nothing is guessed. Lazy modules (transformers) declare for
type checkers what they make at run time; that declaration is followed.
"""

from __future__ import annotations

import ast
import builtins
from dataclasses import dataclass
from pathlib import Path

from automodel_cli.engine.config.source_modules import Module, SourceLimitError, Sources, absolute_import
from automodel_cli.engine.config.source_scope import Binding, Scope, Star


@dataclass(frozen=True)
class Function:
    """A function or lambda, and the module that it stands in."""

    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    module: Module


@dataclass(frozen=True)
class Class:
    """A class, and the module that it stands in."""

    node: ast.ClassDef
    module: Module


@dataclass(frozen=True)
class Builtin:
    """A name of the `builtins` module."""

    name: str


@dataclass(frozen=True)
class Value:
    """Something that cannot be called, by the name of its type."""

    type_name: str


@dataclass(frozen=True)
class Unknown:
    """What source does not tell, and why.

    Args:
        reason: Completes the sentence "... is not checked: ".
        names: Names that are there, where one of them may have been meant.
        owner: The module that may have the name after all.
    """

    reason: str
    names: tuple[str, ...] = ()
    owner: Module | None = None


@dataclass(frozen=True)
class Absent:
    """There certainly is no such name in `owner`."""

    owner: Module


Entity = Function | Class | Builtin | Value | Module | Unknown | Absent

_TOO_DEEP = 40
_FEW_STARS = 8  # so many star imports are read to find the name that was meant
_CONTAINERS = {
    ast.List: "list",
    ast.ListComp: "list",
    ast.Dict: "dict",
    ast.DictComp: "dict",
    ast.Set: "set",
    ast.SetComp: "set",
    ast.Tuple: "tuple",
    ast.JoinedStr: "str",
}


def lookup(sources: Sources, module: Module, name: str, depth: int = 0) -> Entity:
    """What `module.name` is."""
    if module.name == "builtins":
        return Builtin(name) if hasattr(builtins, name) else Absent(module)
    if depth > _TOO_DEEP:
        return Unknown(f"`{name}` is imported in a circle, or through too many modules")
    if module.path is None:
        found = sources.submodule(module, name)
        if found is not None:
            return found
        # A namespace package has only submodules; everything else without source is compiled.
        return (
            Absent(module)
            if module.search is not None
            else Unknown(f"`{module.name}` is compiled, not written in Python")
        )
    try:
        return _in_source(sources, module, name, depth)
    except SyntaxError as error:
        return Unknown(f"{error.filename}:{error.lineno or 1} is not Python that can be read here: {error.msg}")
    except SourceLimitError as error:
        return Unknown(str(error))


def resolve(sources: Sources, module: Module, node: ast.expr, depth: int = 0) -> Entity:
    """What an expression in a module stands for: a name, `a.b`, or a value."""
    if isinstance(node, ast.Name):
        found = lookup(sources, module, node.id, depth + 1)
        return Builtin(node.id) if isinstance(found, Absent) and hasattr(builtins, node.id) else found
    if isinstance(node, ast.Attribute):
        owner = resolve(sources, module, node.value, depth + 1)
        if isinstance(owner, Module):
            return lookup(sources, owner, node.attr, depth + 1)
        return owner if isinstance(owner, Unknown) else Unknown("it is computed")
    if isinstance(node, ast.Subscript):  # Generic[T]
        return resolve(sources, module, node.value, depth + 1)
    if isinstance(node, ast.Lambda):
        return Function(node, module)
    if isinstance(node, ast.Constant):
        return Value(type(node.value).__name__)
    if type(node) in _CONTAINERS:
        return Value(_CONTAINERS[type(node)])
    return Unknown("it is computed when its module is imported")


def names_like(sources: Sources, module: Module, name: str) -> list[str]:
    """Names of a module among which the one that was meant may be: its own, submodules, star imports.

    Of many star imports only those whose module begins like the name are read.
    """
    found = set(sources.scope(module).public())
    for directory in map(Path, module.search or ()):
        entries = directory.iterdir() if directory.is_dir() else ()
        found |= {entry.stem for entry in entries if entry.suffix == ".py" or (entry / "__init__.py").is_file()}
    scope = sources.scope(module)
    stars = [*scope.stars, *scope.declared_stars]
    for star in (each.node for each in stars):
        start = absolute_import(module, star)
        source = sources.module(start) if start else None
        leaf = (star.module or "").rpartition(".")[2]
        is_worth_it = len(stars) <= _FEW_STARS or leaf[:3] == name.lower()[:3]
        if is_worth_it and source is not None and source.path is not None:
            found |= sources.scope(source).exports or set(names_like(sources, source, name))
    return sorted(name for name in found if not name.startswith("_"))


def dotted_name(sources: Sources, module: Module, node: ast.expr) -> str | None:
    """The import path of a decorator or base as the module's imports spell it, without following re-exports."""
    if isinstance(node, ast.Call):
        return dotted_name(sources, module, node.func)
    if isinstance(node, ast.Attribute):
        owner = dotted_name(sources, module, node.value)
        return f"{owner}.{node.attr}" if owner else None
    if isinstance(node, ast.Subscript):
        return dotted_name(sources, module, node.value)
    if not isinstance(node, ast.Name):
        return None
    bindings = sources.scope(module).bindings.get(node.id, [])
    if not bindings:
        return f"builtins.{node.id}" if hasattr(builtins, node.id) else None
    binding = bindings[-1]
    if isinstance(binding.node, ast.ImportFrom) and binding.alias:
        start = absolute_import(module, binding.node)
        return f"{start}.{binding.alias.name}" if start else None
    if isinstance(binding.node, ast.Import) and binding.alias:
        return binding.alias.name if binding.alias.asname else node.id
    return f"{module.name}.{node.id}"


def _in_source(sources: Sources, module: Module, name: str, depth: int) -> Entity:
    scope = sources.scope(module)
    bindings = scope.bindings.get(name)
    if bindings:
        # A star import after the last of them may bring another meaning.
        last = max(binding.node.lineno for binding in bindings)
        later = [star for star in scope.stars if star.node.lineno > last]
        over = _from_stars(sources, module, later, name, depth, is_lazy=False)
        meanings = [_bound(sources, module, name, binding, depth) for binding in bindings]
        return _one_of(meanings if over is None else [*meanings, over], name, module)
    if name.startswith("__") and name.endswith("__"):
        return Unknown("every module has names of this form that nobody writes")
    found = _from_stars(sources, module, scope.stars, name, depth, is_lazy=False)
    if found is not None:
        return found
    submodule = sources.submodule(module, name)
    if submodule is not None:
        return submodule
    if scope.is_dynamic:
        declared = scope.declared.get(name)
        if declared:
            return _one_of([_bound(sources, module, name, binding, depth) for binding in declared], name, module)
        found = _from_stars(sources, module, scope.declared_stars, name, depth, is_lazy=True)
        if found is not None:
            return found
        if not _certainly_lacks(sources, module, scope, name):
            return Unknown(f"`{module.name}` makes some of its names when they are asked for", owner=module)
    return Absent(module)


def _bound(sources: Sources, module: Module, name: str, binding: Binding, depth: int) -> Entity:
    node, alias = binding.node, binding.alias
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return Function(node, module)
    if isinstance(node, ast.ClassDef):
        return Class(node, module)
    if isinstance(node, ast.Import) and alias is not None:
        wanted = alias.name if alias.asname else alias.name.partition(".")[0]
        return sources.module(wanted) or Unknown(f"it comes from `{wanted}`, which is not installed")
    if isinstance(node, ast.ImportFrom) and alias is not None:
        return _imported(sources, module, node, alias.name, depth)
    if binding.value is not None:
        # `x = x` goes round in a circle, and `x = Callable[[int], str]` is a type, not what stands before the bracket.
        is_plain = not isinstance(binding.value, ast.Subscript)
        is_itself = isinstance(binding.value, ast.Name) and binding.value.id == name
        if is_plain and not is_itself:
            return resolve(sources, module, binding.value, depth)
    return Unknown("it is computed when its module is imported")


def _imported(sources: Sources, module: Module, node: ast.ImportFrom, name: str, depth: int) -> Entity:
    start = absolute_import(module, node)
    source = sources.module(start) if start else None
    if source is None:
        return Unknown(f"it comes from `{start}`, which is not installed")
    if source == module:  # `from . import x` in a package's own __init__
        return sources.submodule(module, name) or Unknown("it is imported from its own package")
    found = lookup(sources, source, name, depth + 1)
    return Unknown(f"`{start}` has no `{name}` to import") if isinstance(found, Absent) else found


def _one_of(found: list[Entity], name: str, module: Module) -> Entity:
    """The one meaning of a name that several statements bind, if there is one."""
    different = list(dict.fromkeys(found))
    if len(different) == 1:
        return different[0]
    return Unknown(f"`{name}` is bound in more than one way in `{module.name}`")


def _from_stars(
    sources: Sources, module: Module, stars: list[Star], name: str, depth: int, *, is_lazy: bool
) -> Entity | None:
    """What `from x import *` brings; of several the last counts, as at run time."""
    ordered = list(reversed(stars))
    if is_lazy:
        # The order of a lazy module is not known, and the likely place saves reading the others.
        ordered.sort(key=lambda star: not _is_likely(star.node, name))
    found: list[Entity] = []
    for star in ordered:
        entity = _from_star(sources, module, star.node, name, depth)
        if entity is not None:
            found.append(entity)
            if star.is_certain:
                break
    return _one_of(found, name, module) if found else None


def _from_star(sources: Sources, module: Module, star: ast.ImportFrom, name: str, depth: int) -> Entity | None:
    start = absolute_import(module, star)
    source = sources.module(start) if start else None
    if source is None or source.path is None:
        why = "not installed" if source is None else "not written in Python"
        return Unknown(f"`{module.name}` takes names from `{start}`, which is {why}", owner=module)
    if not sources.mentions(source, name):
        return None
    exports = sources.scope(source).exports
    if name.startswith("_") if exports is None else name not in exports:
        return None
    found = lookup(sources, source, name, depth + 1)
    # A submodule is no name of its package before it is imported.
    is_submodule = isinstance(found, Module) and found.name == f"{start}.{name}"
    return None if isinstance(found, Absent) or is_submodule else found


def _is_likely(star: ast.ImportFrom, name: str) -> bool:
    leaf = (star.module or "").rpartition(".")[2].replace("_", "")
    return bool(leaf) and name.lower().startswith(leaf)


def _certainly_lacks(sources: Sources, module: Module, scope: Scope, name: str) -> bool:
    """Whether a lazy module that declares its names for type checkers certainly lacks one.

    It must declare them, and the word must stand nowhere in its text, where a table of names could hold it.
    """
    declares = bool(scope.declared or scope.declared_stars)
    return declares and b"__getattr__" not in sources.text(module) and name.encode() not in sources.text(module)
