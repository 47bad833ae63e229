"""What a name in a module stands for, by following definitions, imports and re-exports in source.

The answer is a module or a definition, or None where there certainly is no such name; whatever else raises `Undecided`.
Lazy modules (transformers) declare for type checkers what they make at run time; that declaration is followed.
"""

from __future__ import annotations

import ast
import builtins
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from automodel_cli.engine.config.source_modules import Binding, Module, Sources, Star, Undecided, absolute_import

_TOO_DEEP = 40
_FEW_STARS = 8  # maximum number of star imports that are read to suggest a name
_COMPUTED = "it is computed when its module is imported"


@dataclass(frozen=True)
class Definition:
    """A function, lambda or class, and the module that it stands in."""

    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef
    module: Module

    @property
    def name(self) -> str:
        """The name that it is defined by."""
        return "<lambda>" if isinstance(self.node, ast.Lambda) else self.node.name

    @property
    def is_class(self) -> bool:
        """Whether it is a class."""
        return isinstance(self.node, ast.ClassDef)

    @property
    def body(self) -> list[ast.stmt]:
        """The statements of a class; nothing of a function, whose names are its own."""
        return self.node.body if isinstance(self.node, ast.ClassDef) else []

    def member(self, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | None:
        """The last definition of an attribute in the body of a class."""
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        return next((node for node in reversed(self.body) if isinstance(node, kinds) and node.name == name), None)


Entity = Module | Definition


def lookup(sources: Sources, module: Module, name: str, depth: int = 0) -> Entity | None:
    """What `module.name` is; None if there certainly is no such name."""
    if module.name == "builtins" and hasattr(builtins, name):
        raise Undecided("it is built into Python")
    if depth > _TOO_DEEP:
        raise Undecided(f"`{name}` is imported in a circle, or through too many modules")
    submodule = sources.submodule(module, name)
    if module.path is None:
        # A namespace package has only submodules; everything else without source is compiled.
        if submodule is None and module.search is None:
            raise Undecided(f"`{module.name}` is compiled, not written in Python")
        return submodule
    scope = sources.scope(module)
    bindings = scope.bindings.get(name, [])
    # A star import after the last of them may bring another meaning.
    last = max((binding.node.lineno for binding in bindings), default=0)
    found = [_bound(sources, module, name, binding, depth) for binding in bindings]
    found += _starred(sources, module, [star for star in scope.stars if star.node.lineno > last], name, depth)
    if not found and submodule is not None:
        return submodule
    if not found and scope.is_dynamic and scope.declared is not None:
        declared = scope.declared.bindings.get(name, [])
        found = [_bound(sources, module, name, binding, depth) for binding in declared]
        # The order of a lazy module is not known, and the likely place saves reading the others.
        likely = sorted(scope.declared.stars, key=lambda star: _is_likely(star, name))
        found = found or _starred(sources, module, likely, name, depth)
    if found:
        return _only(found, name, module)
    is_special = name[:2] == name[-2:] == "__"  # every module has names of this form that its source does not define
    declares_all = scope.declared is not None and bool(scope.declared.bindings or scope.declared.stars)
    may_make_it = scope.is_dynamic and (not declares_all or b"__getattr__" in sources.text(module.path))
    if is_special or may_make_it or name.encode() in sources.text(module.path):
        raise Undecided(f"`{module.name}` makes some of its names in ways that are not looked into", owner=module)
    return None


def resolve(sources: Sources, module: Module, node: ast.expr, depth: int = 0) -> Entity:
    """What an expression in a module stands for: a name, `a.b`, `Generic[T]` or a lambda."""
    found: Entity | None = None
    if isinstance(node, ast.Name):
        # A name that no statement binds is that of `builtins`, though its word stands in the text.
        if hasattr(builtins, node.id) and node.id not in sources.scope(module).bindings:
            raise Undecided(f"`{node.id}` is built into Python")
        found = lookup(sources, module, node.id, depth + 1)
    elif isinstance(node, ast.Attribute):
        owner = resolve(sources, module, node.value, depth + 1)
        found = lookup(sources, owner, node.attr, depth + 1) if isinstance(owner, Module) else None
    elif isinstance(node, ast.Subscript):
        found = resolve(sources, module, node.value, depth + 1)
    elif isinstance(node, ast.Lambda):
        found = Definition(node, module)
    if found is None:
        raise Undecided(_COMPUTED)
    return found


def spelled(sources: Sources, module: Module, node: ast.expr) -> str:
    """The import path of a decorator or base as the module's imports spell it; re-exports are not followed."""
    if isinstance(node, ast.Call | ast.Subscript):
        return spelled(sources, module, node.func if isinstance(node, ast.Call) else node.value)
    if isinstance(node, ast.Attribute):
        return f"{spelled(sources, module, node.value)}.{node.attr}"
    if not isinstance(node, ast.Name):
        return ""
    bindings = sources.scope(module).bindings.get(node.id)
    if not bindings:
        return f"builtins.{node.id}" if hasattr(builtins, node.id) else ""
    statement, alias = bindings[-1].node, bindings[-1].alias
    if isinstance(statement, ast.ImportFrom) and alias:
        return f"{absolute_import(module, statement)}.{alias.name}"
    if alias:
        return alias.name if alias.asname else node.id
    return f"{module.name}.{node.id}"


def names_like(sources: Sources, module: Module, name: str) -> list[str]:
    """Names of a module among which the one that was meant may be: its own, submodules, star imports."""
    scopes = [scope for scope in (sources.scope(module), sources.scope(module).declared) if scope]
    found = {own for scope in scopes for own in scope.bindings}
    for directory in map(Path, module.search or ()):
        entries = directory.iterdir() if directory.is_dir() else ()
        found |= {entry.stem for entry in entries if entry.suffix == ".py" or (entry / "__init__.py").is_file()}
    stars = [star.node for scope in scopes for star in scope.stars]
    for star in stars:
        source = _source_of(sources, module, star)
        # If there are many star imports, only modules that begin like the name are read.
        is_worth_it = len(stars) <= _FEW_STARS or (star.module or "").rpartition(".")[2][:3] == name.lower()[:3]
        if is_worth_it and source is not None and source.path is not None:
            with suppress(Undecided):  # only a suggestion is lost
                found |= sources.scope(source).exports or set(names_like(sources, source, name))
    return sorted(each for each in found if not each.startswith("_"))


def imported(sources: Sources, module: Module, name: str) -> Binding | None:
    """The last statement that binds a name, in the module that an import takes it from."""
    bindings = sources.scope(module).bindings.get(name)
    binding = bindings[-1] if bindings else None
    if binding is not None and isinstance(binding.node, ast.ImportFrom) and binding.alias is not None:
        source = _source_of(sources, module, binding.node)
        return imported(sources, source, binding.alias.name) if source not in (None, module) and source else None
    return binding


def _source_of(sources: Sources, module: Module, node: ast.ImportFrom) -> Module | None:
    start = absolute_import(module, node)
    return sources.module(start) if start else None


def _bound(sources: Sources, module: Module, name: str, binding: Binding, depth: int) -> Entity:
    node, alias, value = binding.node, binding.alias, binding.value
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return Definition(node, module)
    if alias is None:
        # `x = x` goes round in a circle, and `x = Callable[[int], str]` is a type, not what stands before the bracket.
        if value is None or isinstance(value, ast.Subscript) or (isinstance(value, ast.Name) and value.id == name):
            raise Undecided(_COMPUTED)
        return resolve(sources, module, value, depth)
    if isinstance(node, ast.ImportFrom):
        start, source = absolute_import(module, node), _source_of(sources, module, node)
    else:
        start = alias.name if alias.asname else alias.name.partition(".")[0]
        source = sources.module(start)
    if source is None:
        raise Undecided(f"it comes from `{start}`, which is not installed")
    if not isinstance(node, ast.ImportFrom):
        return source
    # `from . import x` in a package's own __init__ means the submodule.
    is_own = source == module
    found = sources.submodule(module, alias.name) if is_own else lookup(sources, source, alias.name, depth + 1)
    if found is None:
        raise Undecided(f"`{start}` has no `{alias.name}` to import")
    return found


def _starred(sources: Sources, module: Module, stars: list[Star], name: str, depth: int) -> list[Entity]:
    """What `from x import *` may bring; of several the last that certainly runs counts, as at run time."""
    found: list[Entity] = []
    for star in reversed(stars):
        source = _source_of(sources, module, star.node)
        if source is None or source.path is None:
            start = absolute_import(module, star.node)
            why = "not installed" if source is None else "not written in Python"
            raise Undecided(f"`{module.name}` takes names from `{start}`, which is {why}", owner=module)
        if not sources.mentions(source, name):
            continue
        exports = sources.scope(source).exports
        if name.startswith("_") if exports is None else name not in exports:
            continue
        entity = lookup(sources, source, name, depth + 1)
        # A submodule becomes a name of its package only when it is imported.
        if entity is not None and not (isinstance(entity, Module) and entity.name == f"{source.name}.{name}"):
            found.append(entity)
            if star.is_certain:
                break
    return found


def _only(found: list[Entity], name: str, module: Module) -> Entity:
    """The one meaning of a name that several statements bind, if there is one."""
    if len(set(found)) != 1:
        raise Undecided(f"`{name}` is bound in more than one way in `{module.name}`")
    return found[0]


def _is_likely(star: Star, name: str) -> bool:
    leaf = (star.node.module or "").rpartition(".")[2].replace("_", "")
    return bool(leaf) and name.lower().startswith(leaf)
