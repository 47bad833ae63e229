"""What calling a function, a class or a method takes, read from its source and that of its bases.

Knows ordinary constructors, dataclasses, class methods and static methods. A decorator that is not in a short list of
those that keep what is taken, a metaclass, and whatever else Python may change raises `Undecided` with the reason.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from automodel_cli.engine.config.source_modules import Sources, Undecided
from automodel_cli.engine.config.source_names import Definition, resolve, spelled
from automodel_cli.engine.config.target_errors import Parameter, Signature

# Decorators, by the package that they come from, after which a function or class takes what it took before.
_KEEPING = {
    "abc": {"abstractmethod"},
    "builtins": {"classmethod", "staticmethod"},
    "contextlib": {"contextmanager"},
    "functools": {"cache", "lru_cache", "total_ordering"},
    "huggingface_hub": {"strict"},
    "torch": {"enable_grad", "inference_mode", "no_grad"},
    "transformers": {"auto_docstring", "replace_list_option_in_docstrings", "use_kernel_forward_from_hub"},
    "typing": {"dataclass_transform", "final", "no_type_check", "override", "runtime_checkable"},
    "typing_extensions": {"dataclass_transform", "override"},
}
_DATACLASS = "dataclasses.dataclass"
# Bases that make a dataclass of every class that is derived from them and has no constructor of its own.
_DATACLASS_BASES = {("transformers.configuration_utils", "PreTrainedConfig")}
# `__init_subclass__` of these changes no constructor.
_HARMLESS_BASES = {("transformers.modeling_utils", "PreTrainedModel"), *_DATACLASS_BASES}
# Bases that add no constructor of their own; their source need not be read.
_EMPTY_BASES = {"abc.ABC", "builtins.object", "typing.Generic"}
_PLAIN_METACLASSES = {"abc.ABCMeta", "builtins.type"}
_MAX_BASES = 60
_KWARGS_WORD = re.compile(rb"""kwargs(?:\.(?:pop|get|setdefault)\(|\[)\s*["'](\w+)["']""")
_ROUTINES = (ast.FunctionDef, ast.AsyncFunctionDef)
_DEFINING = (*_ROUTINES, ast.ClassDef)


class AbsentMember(Exception):
    """A class certainly has no such attribute; `names` are the public ones that it has."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(names)
        self.names = names


def call_signature(sources: Sources, found: Definition) -> Signature:
    """What calling a function or class takes."""
    if not found.is_class:
        return _of_function(sources, found, is_bound=False)
    own: Signature | None = None
    for base in bases(sources, found):
        if isinstance(base, Undecided):
            # If the class has its own constructor, only a metaclass or a decorator of a base could matter.
            if own is None:
                raise base
            continue
        _refuse_metaclass(sources, base)
        if own is None:
            if base is not found and _member(base, "__init_subclass__") and _key(base) not in _HARMLESS_BASES:
                raise Undecided(f"the base `{base.name}` may change the classes derived from it")
            _refuse_decorators(sources, base)
            own = _constructor(sources, base)
    return own or Signature(())


def method_signature(sources: Sources, owner: Definition, name: str) -> Signature | None:
    """What calling `owner.name` takes, where `owner` is a class; None where it is a property.

    Raises:
        AbsentMember: The class certainly has no such attribute.
    """
    names: list[str] = []
    for base in bases(sources, owner):
        if isinstance(base, Undecided):
            raise base
        _refuse_decorators(sources, base)
        _refuse_metaclass(sources, base)
        _refuse_patch(sources, base, name)
        node = _member(base, name)
        if isinstance(node, ast.ClassDef):
            return call_signature(sources, Definition(node, base.module))
        if isinstance(node, _ROUTINES):
            kinds = {spelled(sources, base.module, decorator) for decorator in node.decorator_list}
            if kinds & {"builtins.property", "functools.cached_property"}:
                return None
            is_bound = "builtins.classmethod" in kinds
            return _of_function(sources, Definition(node, base.module), is_bound=is_bound)
        names += [each for each in _names_in(base) if not each.startswith("_")]
    if hasattr(type, name):
        raise Undecided("it belongs to every class")
    raise AbsentMember(names)


def written_parameters(sources: Sources, found: Definition, method: str | None = None) -> dict[str, Parameter]:
    """The parameters as they are written, whatever a decorator may make of them; empty where nothing is written."""
    if not found.is_class:
        return _parameters(found, is_bound=False)
    for base in bases(sources, found):
        node = _member(base, method or "__init__") if isinstance(base, Definition) else None
        if isinstance(node, _ROUTINES) and isinstance(base, Definition):
            return _parameters(Definition(node, base.module), is_bound=True)
    return {} if method else _dataclass_fields(sources, found, strict=False)


def words_of_kwargs(sources: Sources, found: Definition) -> set[str]:
    """Names that a callable, or a base of the class, looks for among its `**kwargs`, by the text of their modules."""
    modules = {each.module for each in bases(sources, found) if isinstance(each, Definition)}
    if found.module.name.startswith("transformers."):
        # `from_config` of an Auto class goes on to that of a model.
        modules |= {each for each in [sources.module("transformers.modeling_utils")] if each}
    return {word.decode() for module in modules for word in _KWARGS_WORD.findall(sources.text(module.path))}


def bases(sources: Sources, cls: Definition) -> Iterator[Definition | Undecided]:
    """The class and its bases in the order in which attributes are looked up, the class first.

    Depth first, each class at its last place: Python's own order for all hierarchies that are not contrived. What
    cannot be followed stands in its place as the reason.
    """
    order = _depth_first(sources, cls, [0])
    for index, entry in enumerate(order):
        if isinstance(entry, Undecided) or entry not in order[index + 1 :]:
            yield entry


def _depth_first(sources: Sources, cls: Definition, count: list[int]) -> list[Definition | Undecided]:
    found: list[Definition | Undecided] = [cls]
    for node in cls.node.bases if isinstance(cls.node, ast.ClassDef) else ():
        count[0] += 1
        try:
            if spelled(sources, cls.module, node) in _EMPTY_BASES:
                continue
            base = resolve(sources, cls.module, node) if count[0] < _MAX_BASES else None
            if not isinstance(base, Definition) or not base.is_class:
                raise Undecided("it is no class in source")
            found += _depth_first(sources, base, count)
        except Undecided as error:
            found.append(Undecided(f"its base `{ast.unparse(node)}` cannot be followed: {error}"))
    return found


def _constructor(sources: Sources, cls: Definition) -> Signature | None:
    """What the class itself says about its constructor; None if it inherits it."""
    _refuse_patch(sources, cls, "__init__")
    for name in ("__new__", "__init__"):
        node = _member(cls, name)
        if isinstance(node, _ROUTINES):
            return _of_function(sources, Definition(node, cls.module), is_bound=True)
    decorator = _dataclass_decorator(sources, cls)
    says_no = isinstance(decorator, ast.Call) and any(
        keyword.arg == "init" and ast.unparse(keyword.value) == "False" for keyword in decorator.keywords
    )
    is_one = decorator is not None or any(
        _key(base) in _DATACLASS_BASES for base in bases(sources, cls) if isinstance(base, Definition)
    )
    return _signature(_dataclass_fields(sources, cls, strict=True)) if is_one and not says_no else None


def _of_function(sources: Sources, function: Definition, *, is_bound: bool) -> Signature:
    _refuse_decorators(sources, function)
    takes_any = not isinstance(function.node, ast.ClassDef) and function.node.args.kwarg is not None
    return _signature(_parameters(function, is_bound=is_bound), takes_any=takes_any)


def _signature(parameters: dict[str, Parameter], *, takes_any: bool = False) -> Signature:
    required = frozenset(name for name, parameter in parameters.items() if parameter.default is None)
    return Signature(tuple(parameters), required, takes_any)


def _parameters(function: Definition, *, is_bound: bool) -> dict[str, Parameter]:
    """The parameters that can be given by keyword."""
    if isinstance(function.node, ast.ClassDef):
        return {}
    arguments = function.node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    padding = [None] * (len(positional) - len(arguments.defaults))
    defaults = [*padding, *arguments.defaults, *arguments.kw_defaults]
    pairs = list(zip([*positional, *arguments.kwonlyargs], defaults, strict=True))[
        1 if is_bound and positional else 0 :
    ]
    return {
        argument.arg: Parameter(_text(argument.annotation), _text(default))
        for argument, default in pairs
        if argument not in arguments.posonlyargs
    }


def _dataclass_fields(sources: Sources, cls: Definition, *, strict: bool) -> dict[str, Parameter]:
    """The fields of a dataclass and of the dataclasses that it derives from."""
    found: dict[str, Parameter] = {}
    lineage = list(bases(sources, cls))
    for index, base in reversed(list(enumerate(lineage))):
        if isinstance(base, Undecided):
            if strict:
                raise base
            continue
        above = (each for each in lineage[index:] if isinstance(each, Definition))
        is_one = _dataclass_decorator(sources, base) is not None or any(
            _key(each) in _DATACLASS_BASES for each in above
        )
        for node in base.body if is_one or not strict else ():
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            kind = ast.unparse(node.annotation).strip("'\"").rpartition("typing.")[2]
            if kind.startswith("ClassVar") or kind.rpartition(".")[2] == "KW_ONLY":
                continue
            given = {}
            if isinstance(node.value, ast.Call):
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.value.keywords}
            if given.get("init") == "False":
                found.pop(node.target.id, None)
                continue
            default = given.get("default", given.get("default_factory", _text(node.value)))
            # A `field(...)` without a default is required; what another call returns is a default itself.
            if isinstance(node.value, ast.Call) and spelled(sources, base.module, node.value) == "dataclasses.field":
                default = default if {"default", "default_factory", None} & set(given) else None
            found[node.target.id] = Parameter(_text(node.annotation), default)
    return found


def _refuse_decorators(sources: Sources, found: Definition) -> None:
    decorators = [] if isinstance(found.node, ast.Lambda) else found.node.decorator_list
    for decorator in decorators:
        path = spelled(sources, found.module, decorator)
        package, name = path.partition(".")[0], path.rpartition(".")[2]
        if name not in _KEEPING.get(package, ()) and path != _DATACLASS:
            shown = ast.unparse(decorator).partition("(")[0]
            raise Undecided(f"the decorator `{shown}` of `{found.name}` may change what it takes")


def _refuse_metaclass(sources: Sources, cls: Definition) -> None:
    keywords = cls.node.keywords if isinstance(cls.node, ast.ClassDef) else []
    metaclasses = [keyword.value for keyword in keywords if keyword.arg == "metaclass"]
    if any(spelled(sources, cls.module, value) not in _PLAIN_METACLASSES for value in metaclasses):
        raise Undecided(f"`{cls.name}` has a metaclass, which may change what it takes")


def _refuse_patch(sources: Sources, cls: Definition, name: str) -> None:
    if re.search(rf"^\s*{cls.name}\.{name}\s*=".encode(), sources.text(cls.module.path), re.MULTILINE):
        raise Undecided(f"`{cls.name}.{name}` is assigned after the class")


def _dataclass_decorator(sources: Sources, cls: Definition) -> ast.expr | None:
    decorators = cls.node.decorator_list if isinstance(cls.node, ast.ClassDef) else []
    return next((node for node in decorators if spelled(sources, cls.module, node) == _DATACLASS), None)


def _member(cls: Definition, name: str) -> ast.stmt | None:
    """The definition of an attribute in the body of a class."""
    node = cls.member(name)
    if any(name in _bound_in(other) for other in cls.body if other is not node):
        raise Undecided(f"`{name}` is assigned in the class `{cls.name}`, not only defined")
    return node


def _names_in(cls: Definition) -> Iterator[str]:
    for node in cls.body:
        yield from [node.name] if isinstance(node, _DEFINING) else _bound_in(node)


def _bound_in(node: ast.stmt) -> set[str]:
    """Names that a statement of a class body binds, other than by defining them right there."""
    if isinstance(node, _DEFINING) or (isinstance(node, ast.AnnAssign) and node.value is None):
        return set()
    names: set[str] = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            names.add(inner.id)
        elif isinstance(inner, _DEFINING):
            names.add(inner.name)
        elif isinstance(inner, ast.alias):
            names.add(inner.asname or inner.name)
    return names


def _key(cls: Definition) -> tuple[str, str]:
    return cls.module.name, cls.name


def _text(node: ast.expr | None) -> str | None:
    return None if node is None else ast.unparse(node)
