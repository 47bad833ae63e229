"""What the source of a `_target_`'s callable says about its arguments. Reads source, imports nothing.

Which keywords a callable takes is `static_target`'s to answer. This module adds what people want
to know of each: the line of the docstring, the annotation and the default, as they are written.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from automodel_cli.engine.config.aliases import resolved
from automodel_cli.engine.config.config import TARGET, Config
from automodel_cli.engine.config.docstring import argument_meanings, summary
from automodel_cli.engine.config.emit import inline
from automodel_cli.engine.config.origin import KeyPath, Origin, dotted
from automodel_cli.engine.config.source_modules import Module, SourceLimitError, Sources, absolute_import
from automodel_cli.engine.config.source_names import Class, Function, resolve
from automodel_cli.engine.config.static_target import static_target
from automodel_cli.errors import ConfigError

_TOO_DEEP = 20
_Routine = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


@dataclass(frozen=True)
class Argument:
    """One argument: its meaning, its annotation and its default as they stand in the source."""

    meaning: str | None = None
    annotation: str | None = None
    default: str | None = None
    is_required: bool = False

    def default_yaml(self) -> str | None:
        """The default as a configuration would give it; None where it is a name or a call.

        >>> Argument(default="(0.9, 0.999)").default_yaml()
        '[0.9, 0.999]'
        """
        if self.default is None:
            return None
        try:
            literal = ast.literal_eval(self.default)
        except (ValueError, SyntaxError):
            return None
        return inline(list(literal) if isinstance(literal, tuple) else literal)


@dataclass(frozen=True)
class CallableFacts:
    """A callable: the first paragraph of its docstring, where it stands, and its arguments by name."""

    summary: str | None
    place: str
    arguments: dict[str, Argument]


class Callables:
    """The callables of one configuration, looked up when they are asked for; every source is read once."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._sources = Sources()
        self._found: dict[KeyPath, CallableFacts | None] = {}

    def of(self, section: KeyPath) -> CallableFacts | None:
        """The callable of the section at `section`; None where its source cannot be found."""
        if section not in self._found:
            self._found[section] = self._read(section)
        return self._found[section]

    def _read(self, section: KeyPath) -> CallableFacts | None:
        path = (*section, TARGET)
        target = resolved(str(self._config.at(path)))
        try:
            found = static_target(target, self._config.origin(path), dotted(path), self._sources)
            if found.definition is None:
                return None
            names = found.signature.names if found.signature else None
            required = found.signature.required if found.signature else frozenset()
            name = target.replace(":", ".").rpartition(".")[2]
            return _facts(self._sources, found.definition, name, names, required)
        except (ConfigError, SyntaxError, SourceLimitError, OSError):
            return None


def arguments_of(config: Config, section: KeyPath) -> CallableFacts | None:
    """The callable of one section; see `Callables` for several."""
    return Callables(config).of(section)


def _facts(
    sources: Sources, found: Function | Class, name: str, names: tuple[str, ...] | None, required: frozenset[str]
) -> CallableFacts:
    """What is known of a callable.

    Args:
        sources: Where it was found.
        found: A function, or a class: the callable itself, or the owner of the method `name`.
        name: The last word of the target.
        names: The keywords that it takes, where that is certain.
        required: Those without a default.
    """
    lineage = [] if isinstance(found, Function) else list(_lineage(sources, found, 0))
    routine = found if isinstance(found, Function) else _method(lineage, name)
    if routine is not None:
        texts, written = [_docstring(routine.node)], dict(_parameters(routine.node))
    else:
        constructor = _method(lineage, "__init__")
        written = _fields(lineage) if constructor is None else dict(_parameters(constructor.node))
        texts = [text for base in lineage for text in _class_docstrings(sources, base)]
    meanings: dict[str, str] = {}
    for text in texts:
        meanings = argument_meanings(text) | meanings
    arguments = {
        each: Argument(meanings.get(each), *written.get(each, (None, None)), is_required=each in required)
        for each in (names if names is not None else written)
        if each not in ("self", "cls")
    }
    definition = routine or found
    place = Origin("file", str(definition.module.path), line=definition.node.lineno).short()
    return CallableFacts(next(filter(None, map(summary, texts)), None), place, arguments)


def _lineage(sources: Sources, cls: Class, depth: int) -> Iterator[Class]:
    """The class and those of its bases that stand in source, depth first."""
    yield cls
    for base in cls.node.bases if depth < _TOO_DEEP else []:
        found = resolve(sources, cls.module, base)
        if isinstance(found, Class):
            yield from _lineage(sources, found, depth + 1)


def _method(lineage: list[Class], name: str) -> Function | None:
    """The function of this name in the first class that defines it."""
    for cls in lineage:
        for node in cls.node.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
                return Function(node, cls.module)
    return None


def _parameters(node: _Routine) -> Iterator[tuple[str, tuple[str | None, str | None]]]:
    """(name, (annotation, default)) of each parameter that can be named."""
    positional = [*node.args.posonlyargs, *node.args.args]
    padding = [None] * (len(positional) - len(node.args.defaults))
    defaults = [*padding, *node.args.defaults, *node.args.kw_defaults]
    for parameter, default in zip([*positional, *node.args.kwonlyargs], defaults, strict=True):
        yield parameter.arg, (_text(parameter.annotation), _text(default))


def _fields(lineage: list[Class]) -> dict[str, tuple[str | None, str | None]]:
    """Annotated names of classes without a constructor of their own, as dataclasses have them."""
    found: dict[str, tuple[str | None, str | None]] = {}
    for cls in lineage:
        for node in cls.node.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                annotation = _text(node.annotation) or ""
                if not annotation.startswith(("ClassVar", "typing.ClassVar")):
                    found.setdefault(node.target.id, (annotation, _text(node.value)))
    return found


def _text(node: ast.expr | None) -> str | None:
    if isinstance(node, ast.Call):
        # `field(default=1)` and its relatives: the default is what they are told.
        return next((_text(keyword.value) for keyword in node.keywords if keyword.arg == "default"), ast.unparse(node))
    return None if node is None else ast.unparse(node)


def _docstring(node: ast.AST) -> str | None:
    return ast.get_docstring(node) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else None


def _class_docstrings(sources: Sources, cls: Class) -> Iterator[str | None]:
    """The docstrings of a class and of its constructor; also one assigned to `__doc__` after the class."""
    yield _docstring(cls.node) or _assigned_docstring(sources, cls.module, cls.node.name)
    constructor = _method([cls], "__init__")
    yield _docstring(constructor.node) if constructor else None


def _assigned_docstring(sources: Sources, module: Module, name: str) -> str | None:
    for node in ast.parse(sources.text(module)).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == f"{name}.__doc__":
            return _text_value(sources, module, node.value)
    return None


def _text_value(sources: Sources, module: Module, node: ast.expr | None) -> str:
    """Text that is put together from constants, as torch does it; what is computed is left out."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.BinOp):
        return _text_value(sources, module, node.left) + _text_value(sources, module, node.right)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text_value(sources, module, part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _text_value(sources, module, node.value)
    bindings = sources.scope(module).bindings.get(node.id) if isinstance(node, ast.Name) else None
    if not bindings:
        return ""
    statement, alias, value = bindings[-1].node, bindings[-1].alias, bindings[-1].value
    if isinstance(statement, ast.ImportFrom) and alias is not None:
        start = absolute_import(module, statement)
        source = sources.module(start) if start else None
        found = sources.scope(source).bindings.get(alias.name) if source is not None else None
        value = found[-1].value if found else None
    return str(value.value) if isinstance(value, ast.Constant) else ""
