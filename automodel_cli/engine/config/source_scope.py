"""The top-level names of one module: which statements bind each, and whether there may be others.

Works on a syntax tree alone. Where several statements may be the one that counts at run time
(branches, `try`), all are kept.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeGuard

# `globals()` anywhere but in `globals()["x"]` and `globals().get(`, which only read.
_WRITES_GLOBALS = re.compile(rb"\bglobals\(\)(?!\.get\(|\[[^\]]*\](?!\s*=[^=]))|\bexec\(")
_IS_LAZY = re.compile(rb"^(?:def )?__getattr__\b|\bsys\.modules\[", re.MULTILINE)


@dataclass(frozen=True)
class Binding:
    """One statement that gives a name its meaning.

    Args:
        node: The definition, import or assignment.
        alias: The part of an import that binds the name.
        value: What is assigned, where it is one expression.
    """

    node: ast.stmt
    alias: ast.alias | None = None
    value: ast.expr | None = None


@dataclass(frozen=True)
class Star:
    """One `from x import *`, and whether it certainly runs: not in a branch or `try`."""

    node: ast.ImportFrom
    is_certain: bool = True


@dataclass
class Scope:
    """The names of a module.

    Args:
        bindings: Per name, every statement that may be the one that counts at run time.
        declared: The same, from blocks that only type checkers read.
        stars: `from x import *`, in order; `declared_stars` are those for type checkers.
        exports: `__all__`, where it is a plain list.
        is_dynamic: Whether names may exist that no statement binds.
        patched: (class, attribute) pairs that a statement outside the class assigns.
    """

    bindings: dict[str, list[Binding]] = field(default_factory=dict)
    declared: dict[str, list[Binding]] = field(default_factory=dict)
    stars: list[Star] = field(default_factory=list)
    declared_stars: list[Star] = field(default_factory=list)
    exports: frozenset[str] | None = None
    is_dynamic: bool = False
    patched: set[tuple[str, str]] = field(default_factory=set)

    def public(self) -> list[str]:
        """The names that a user may mean."""
        return sorted(name for name in {*self.bindings, *self.declared} if not name.startswith("_"))


def read_scope(tree: ast.Module, text: bytes) -> Scope:
    """The names that the statements of a module bind."""
    scope = Scope(is_dynamic=writes_globals(text) or bool(_IS_LAZY.search(text)))
    _scan(tree.body, scope, declared=False, is_certain=True)
    if text.count(b"__all__") != 1:  # something may change it after it was made
        scope.exports = None
    return scope


def writes_globals(text: bytes) -> bool:
    """Whether a module can bind names in ways that its statements do not show."""
    return bool(_WRITES_GLOBALS.search(text))


def _scan(body: list[ast.stmt], scope: Scope, *, declared: bool, is_certain: bool) -> None:
    names = scope.declared if declared else scope.bindings
    for node in body:
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            _scan(node.body, scope, declared=True, is_certain=True)
            _scan(node.orelse, scope, declared=declared, is_certain=is_certain)
        elif isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            (scope.declared_stars if declared else scope.stars).append(Star(node, is_certain))
        elif isinstance(node, ast.Delete):
            for target in node.targets:
                if isinstance(target, ast.Name) and is_certain:
                    names.pop(target.id, None)
        else:
            scope.patched.update(_patched_by(node))
            for name, binding in _bound_by(node):
                if name == "__all__":
                    _note_exports(binding, scope)
                if name == "__getattr__":
                    scope.is_dynamic = True
                if is_certain:
                    names[name] = [binding]
                else:
                    names.setdefault(name, []).append(binding)
            for inner in _blocks(node):
                _scan(inner, scope, declared=declared, is_certain=is_certain and isinstance(node, ast.With))


def _bound_by(node: ast.stmt) -> Iterator[tuple[str, Binding]]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        # Overloads are for type checkers; the definition after them is the one that is called.
        if not any(_ends_with(decorator, "overload") for decorator in node.decorator_list):
            yield node.name, Binding(node)
    elif isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.asname or alias.name.partition(".")[0], Binding(node, alias)
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            yield alias.asname or alias.name, Binding(node, alias)
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Name):
                yield target.id, Binding(node, value=node.value)
            else:
                yield from ((name.id, Binding(node)) for name in ast.walk(target) if _is_stored(name))
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
        yield node.target.id, Binding(node, value=node.value)
    elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
        yield node.target.id, Binding(node)
    elif isinstance(node, ast.For | ast.AsyncFor):
        yield from ((name.id, Binding(node)) for name in ast.walk(node.target) if _is_stored(name))


def _patched_by(node: ast.stmt) -> Iterator[tuple[str, str]]:
    for target in node.targets if isinstance(node, ast.Assign) else ():
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
            yield target.value.id, target.attr


def _is_stored(node: ast.AST) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def _blocks(node: ast.stmt) -> Iterator[list[ast.stmt]]:
    """The blocks of a statement whose names belong to the module."""
    if isinstance(node, ast.If | ast.For | ast.AsyncFor | ast.While):
        yield from (node.body, node.orelse)
    elif isinstance(node, ast.With | ast.AsyncWith):
        yield node.body
    elif isinstance(node, ast.Try | ast.TryStar):
        yield node.body
        yield from (handler.body for handler in node.handlers)
        yield from (node.orelse, node.finalbody)


def _is_type_checking(test: ast.expr) -> bool:
    return _ends_with(test, "TYPE_CHECKING")


def _ends_with(node: ast.expr, name: str) -> bool:
    return (isinstance(node, ast.Name) and node.id == name) or (isinstance(node, ast.Attribute) and node.attr == name)


def _note_exports(binding: Binding, scope: Scope) -> None:
    """Keeps a literal `__all__`; one that is changed later or computed says nothing for certain."""
    try:
        value = ast.literal_eval(binding.value) if binding.value is not None else None
    except (ValueError, TypeError):
        value = None
    plain = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    scope.exports = frozenset(value) if plain and value is not None else None
