"""Whether a decorator leaves what it decorates as it is, judged by the decorator's own source.

Registries (`return cls`) and wrappers made with `functools.wraps` do: `inspect.signature` shows
the decorated function itself. Everything else may change what a call takes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from automodel_cli.engine.config.source_modules import Module, Sources
from automodel_cli.engine.config.source_names import Function, dotted_name, resolve

# Known without reading them; their source is long, or not in Python.
_KEEPING = {
    "abc.abstractmethod",
    "builtins.classmethod",
    "builtins.staticmethod",
    "contextlib.contextmanager",
    "functools.cache",
    "functools.lru_cache",
    "torch.enable_grad",
    "torch.inference_mode",
    "torch.no_grad",
    "typing.final",
    "typing.no_type_check",
    "typing.override",
    "typing_extensions.deprecated",
    "typing_extensions.override",
    "warnings.deprecated",
}

_KEEPING_CLASSES = {"functools.total_ordering", "typing.final", "typing.runtime_checkable"}
# What may be done with the argument without changing what it takes.
_HARMLESS_CALLS = {"add", "append", "callable", "getattr", "hasattr", "isinstance", "issubclass", "register"}
_HARMLESS_ATTRIBUTES = {"__doc__", "__module__", "__name__", "__qualname__"}

_Definition = ast.FunctionDef | ast.AsyncFunctionDef


def keeps_signature(sources: Sources, module: Module, decorator: ast.expr, *, of_class: bool = False) -> bool:
    """Whether the decorated function or class certainly takes what it took before."""
    if dotted_name(sources, module, decorator) in (_KEEPING_CLASSES if of_class else _KEEPING):
        return True
    is_factory = isinstance(decorator, ast.Call)
    found = resolve(sources, module, decorator.func if isinstance(decorator, ast.Call) else decorator)
    if not isinstance(found, Function) or not isinstance(found.node, ast.FunctionDef) or found.node.decorator_list:
        return False
    if not is_factory:
        return _returns_its_argument(sources, found.module, found.node)
    made = [_inner(found.node, value) for value in _returned(found.node)]
    return bool(made) and all(inner and _returns_its_argument(sources, found.module, inner) for inner in made)


def _returns_its_argument(sources: Sources, module: Module, node: _Definition) -> bool:
    """Whether every `return` gives the first argument back, or a wrapper that shows its signature."""
    arguments = [*node.args.posonlyargs, *node.args.args]
    values = list(_returned(node))
    if not arguments or not values or isinstance(node, ast.AsyncFunctionDef):
        return False
    name = arguments[0].arg
    if any(_may_change(inner, name) for inner in ast.walk(node)):
        return False
    return all(_is_name(value, name) or _wraps(sources, module, _inner(node, value), name) for value in values)


def _may_change(node: ast.AST, name: str) -> bool:
    """Whether a node may give the argument another meaning, or change it."""
    if isinstance(node, ast.Name):
        return node.id == name and isinstance(node.ctx, ast.Store)
    if isinstance(node, ast.Attribute):
        return isinstance(node.ctx, ast.Store) and _is_name(node.value, name) and node.attr not in _HARMLESS_ATTRIBUTES
    if isinstance(node, ast.Call) and any(_is_name(argument, name) for argument in node.args):
        function = node.func
        called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        return called not in _HARMLESS_CALLS | {"wraps"}
    return False


def _wraps(sources: Sources, module: Module, wrapper: _Definition | None, name: str) -> bool:
    for decorator in wrapper.decorator_list if wrapper else ():
        is_wraps = dotted_name(sources, module, decorator) == "functools.wraps"
        if is_wraps and isinstance(decorator, ast.Call) and decorator.args and _is_name(decorator.args[0], name):
            return True
    return False


def _inner(node: _Definition, value: ast.expr | None) -> _Definition | None:
    """The function defined inside `node` that `value` names."""
    found = [
        inner
        for inner in _own_nodes(node)
        if isinstance(inner, _Definition) and isinstance(value, ast.Name) and inner.name == value.id
    ]
    return found[0] if len(found) == 1 else None


def _returned(node: _Definition) -> Iterator[ast.expr | None]:
    yield from (inner.value for inner in _own_nodes(node) if isinstance(inner, ast.Return))


def _own_nodes(node: _Definition) -> Iterator[ast.AST]:
    """The nodes of a function's body, without the insides of functions and classes in it."""
    pending: list[ast.AST] = list(node.body)
    while pending:
        inner = pending.pop()
        yield inner
        if not isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            pending += ast.iter_child_nodes(inner)


def _is_name(node: ast.expr | None, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name
