"""What calling a class or one of its methods takes, read from the source of the class and its bases.

Knows ordinary constructors, dataclasses, class methods and static methods. A decorator or
metaclass that may change the result makes it unknown, unless it is one of the well-known ones
that keep it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from automodel_cli.engine.config.signature import Signature
from automodel_cli.engine.config.source_decorators import keeps_signature
from automodel_cli.engine.config.source_modules import Sources
from automodel_cli.engine.config.source_names import (
    Builtin,
    Class,
    Entity,
    Function,
    Unknown,
    Value,
    dotted_name,
    resolve,
)

_DATACLASS = "dataclasses.dataclass"
# Bases that add no constructor of their own; their source need not be read.
_EMPTY_BASES = {"abc.ABC", "builtins.object", "typing.Generic"}
_PLAIN_METACLASSES = {"abc.ABCMeta", "builtins.type"}


@dataclass(frozen=True)
class AbsentMember:
    """A class certainly has no such attribute; `names` are the public ones that it has."""

    names: tuple[str, ...]


def call_signature(sources: Sources, entity: Entity) -> Signature | Unknown:
    """What calling a function or class takes."""
    if isinstance(entity, Function):
        return _of_function(sources, entity, is_bound=False)
    if isinstance(entity, Class):
        return _of_class(sources, entity)
    if isinstance(entity, Builtin):
        return Unknown("it is built into Python")
    return entity if isinstance(entity, Unknown) else Unknown("it is not a function or class in source")


def attribute_signature(sources: Sources, owner: Class, name: str) -> Signature | Unknown | Value | AbsentMember:
    """What calling `owner.name` takes, where `owner` is a class; `Value` if it cannot be called."""
    names: list[str] = []
    blocked = _decorated(sources, owner)  # before the bases, which may be long
    if blocked is not None:
        return blocked
    for base in _linearised(sources, owner):
        if isinstance(base, Unknown):
            return Unknown(base.reason, tuple(names))
        blocked = _decorated(sources, base) or _patched(sources, base, name)
        if blocked is not None:
            return Unknown(blocked.reason, tuple(names))
        for node in reversed(base.node.body):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
                return _of_method(sources, Function(node, base.module))
            if isinstance(node, ast.ClassDef) and node.name == name:
                return _of_class(sources, Class(node, base.module))
            if name in _assigned_names(node):
                return Unknown("it is assigned in the class, not defined")
        names += [own for own in _own_names(base) if not own.startswith("_")]
    return Unknown("it belongs to every class") if hasattr(type, name) else AbsentMember(tuple(names))


def _of_class(sources: Sources, cls: Class) -> Signature | Unknown:
    blocked = _decorated(sources, cls)
    if blocked is not None:
        return blocked
    own = _patched(sources, cls, "__init__") or _constructor(sources, cls)
    for base in list(_linearised(sources, cls))[1:]:
        # With a constructor of its own, a class needs its bases only for what may come before the call.
        if isinstance(base, Unknown):
            if own is None:
                return base
            continue
        if _has_metaclass(sources, base):
            return Unknown(f"its base `{base.node.name}` has a metaclass, which may change what it takes")
        if own is None:
            if _defines(base, "__init_subclass__"):
                return Unknown(f"the base `{base.node.name}` may change the classes derived from it")
            own = _decorated(sources, base) or _patched(sources, base, "__init__") or _constructor(sources, base)
    return Signature(()) if own is None else own


def _constructor(sources: Sources, cls: Class) -> Signature | Unknown | None:
    """What the class itself says about its constructor; None if it inherits it."""
    for name in ("__new__", "__init__"):
        for node in reversed(cls.node.body):
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return _of_function(sources, Function(node, cls.module), is_bound=True)
            if name in _assigned_names(node):
                return Unknown("its constructor is assigned, not defined")
    decorator = _dataclass_decorator(sources, cls)
    return None if decorator is None or _says(decorator, "init", False) else _of_dataclass(sources, cls)


def _of_method(sources: Sources, method: Function) -> Signature | Unknown | Value:
    """What calling a method through its class takes."""
    decorators = [] if isinstance(method.node, ast.Lambda) else method.node.decorator_list
    kinds = {dotted_name(sources, method.module, decorator) for decorator in decorators}
    if kinds & {"builtins.property", "functools.cached_property"}:
        return Value("property")
    return _of_function(sources, method, is_bound="builtins.classmethod" in kinds)


def _of_function(sources: Sources, function: Function, *, is_bound: bool) -> Signature | Unknown:
    node = function.node
    for decorator in [] if isinstance(node, ast.Lambda) else node.decorator_list:
        if not keeps_signature(sources, function.module, decorator):
            return Unknown(f"the decorator `{ast.unparse(decorator).partition('(')[0]}` may change what it takes")
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    num_required = len(positional) - len(arguments.defaults)
    required = {argument.arg for argument in positional[:num_required]}
    required |= {
        a.arg for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default is None
    }
    first = 1 if is_bound and positional else 0
    by_keyword = [a.arg for a in positional[first:] if a not in arguments.posonlyargs]
    names = (*by_keyword, *(argument.arg for argument in arguments.kwonlyargs))
    return Signature(names, frozenset(required & set(names)), takes_any=arguments.kwarg is not None)


def _of_dataclass(sources: Sources, cls: Class) -> Signature | Unknown:
    """The fields of a dataclass and of the dataclasses that it derives from."""
    fields: dict[str, bool] = {}
    for base in reversed(list(_linearised(sources, cls))):
        if isinstance(base, Unknown):
            return base
        if _dataclass_decorator(sources, base) is None:
            continue
        for name, is_required in _fields(sources, base):
            if is_required is None:
                fields.pop(name, None)
            else:
                fields[name] = is_required
    return Signature(tuple(fields), frozenset(name for name, is_required in fields.items() if is_required))


def _fields(sources: Sources, cls: Class) -> Iterator[tuple[str, bool | None]]:
    """(name, whether it has no default); None for a field that the constructor does not take."""
    for node in cls.node.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        kind = ast.unparse(node.annotation).strip("'\"").rpartition("typing.")[2]
        if kind.startswith("ClassVar") or kind.rpartition(".")[2] == "KW_ONLY":
            continue
        value = node.value
        if isinstance(value, ast.Call) and dotted_name(sources, cls.module, value) == "dataclasses.field":
            has_default = any(k.arg in ("default", "default_factory", None) for k in value.keywords)
            yield node.target.id, None if _says(value, "init", False) else not has_default
        else:
            yield node.target.id, value is None


def _decorated(sources: Sources, cls: Class) -> Unknown | None:
    """Why the class may not be what its body says."""
    for decorator in cls.node.decorator_list:
        is_dataclass = dotted_name(sources, cls.module, decorator) == _DATACLASS
        if not is_dataclass and not keeps_signature(sources, cls.module, decorator, of_class=True):
            shown = ast.unparse(decorator).partition("(")[0]
            return Unknown(f"the decorator `{shown}` of `{cls.node.name}` may change what it takes")
    if _has_metaclass(sources, cls):
        return Unknown(f"`{cls.node.name}` has a metaclass, which may change what it takes")
    return None


def _has_metaclass(sources: Sources, cls: Class) -> bool:
    metaclasses = [keyword.value for keyword in cls.node.keywords if keyword.arg == "metaclass"]
    return any(dotted_name(sources, cls.module, value) not in _PLAIN_METACLASSES for value in metaclasses)


def _defines(cls: Class, name: str) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == name for node in cls.node.body)


def _patched(sources: Sources, cls: Class, name: str) -> Unknown | None:
    if (cls.node.name, name) in sources.scope(cls.module).patched:
        return Unknown(f"`{cls.node.name}.{name}` is assigned after the class")
    return None


def _dataclass_decorator(sources: Sources, cls: Class) -> ast.expr | None:
    decorators = cls.node.decorator_list
    return next((node for node in decorators if dotted_name(sources, cls.module, node) == _DATACLASS), None)


def _says(node: ast.expr, name: str, value: object) -> bool:
    """Whether a call has the keyword `name` with this constant."""
    keywords = node.keywords if isinstance(node, ast.Call) else []
    return any(k.arg == name and isinstance(k.value, ast.Constant) and k.value.value is value for k in keywords)


def _linearised(sources: Sources, cls: Class) -> Iterator[Class | Unknown]:
    """The class and its bases in the order in which attributes are looked up.

    Depth first, each class at its last place: Python's own order for all hierarchies that are not
    contrived. What cannot be resolved stands in its place as `Unknown`.
    """
    order = _depth_first(sources, cls, 0)
    for index, entry in enumerate(order):
        if isinstance(entry, Unknown) or entry not in order[index + 1 :]:
            yield entry


def _depth_first(sources: Sources, cls: Class, depth: int) -> list[Class | Unknown]:
    found: list[Class | Unknown] = [cls]
    for base in cls.node.bases:
        if dotted_name(sources, cls.module, base) in _EMPTY_BASES:
            continue
        entity = Unknown("its bases are too deep") if depth > 20 else resolve(sources, cls.module, base)
        if isinstance(entity, Class):
            found += _depth_first(sources, entity, depth + 1)
        elif isinstance(entity, Builtin):
            found.append(Unknown(f"its base `{entity.name}` is built into Python"))
        else:
            reason = entity.reason if isinstance(entity, Unknown) else "it is no class in source"
            found.append(Unknown(f"its base `{ast.unparse(base)}` cannot be followed: {reason}"))
    return found


def _own_names(cls: Class) -> list[str]:
    defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    names = [node.name for node in cls.node.body if isinstance(node, defined)]
    return names + [name for node in cls.node.body for name in _assigned_names(node)]


def _assigned_names(node: ast.stmt) -> set[str]:
    """Names that a statement of a class body binds, other than by defining them right there."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return set()
    if isinstance(node, ast.AnnAssign) and node.value is None:
        return set()
    names: set[str] = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            names.add(inner.id)
        elif isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(inner.name)
        elif isinstance(inner, ast.alias):
            names.add(inner.asname or inner.name)
    return names


def declared_names(cls: Class) -> tuple[str, ...]:
    """Names that a class annotates, or lists in a table of its own: what it may take, not what it must."""
    names: list[str] = []
    for node in cls.node.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.append(node.target.id)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            names += [
                key.value for key in node.value.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)
            ]
    return tuple(names)
