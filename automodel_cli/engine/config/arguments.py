"""What the source of a `_target_`'s callable says about its arguments. Reads source, imports nothing.

`static_target` says which keywords a callable takes. This module adds the meaning in the docstring, the annotation
and the default of each, as they are written.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from automodel_cli.engine.config.aliases import resolved
from automodel_cli.engine.config.config import TARGET, Config
from automodel_cli.engine.config.emit import inline
from automodel_cli.engine.config.origin import KeyPath, Origin, dotted
from automodel_cli.engine.config.source_modules import Module, Sources, Undecided
from automodel_cli.engine.config.source_names import Definition, imported
from automodel_cli.engine.config.source_signatures import bases, written_parameters
from automodel_cli.engine.config.target import static_target
from automodel_cli.engine.config.target_errors import Signature
from automodel_cli.errors import ConfigError

_HEADER = re.compile(r"(?:Args|Arguments|Parameters):\s*")
_ENTRY = re.compile(r"(?P<names>\*{0,2}\w+(?:\s*,\s*\w+)*)\s*(?:\(.*?\))?\s*:(?:\s+(?P<text>.*))?")


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

    def values(self) -> tuple[str, ...]:
        """The values of a type that has few, as YAML.

        >>> Argument(annotation="Literal['sum', 'mean'] | None").values(), Argument(annotation="int").values()
        (('sum', 'mean', 'null'), ())
        """
        try:
            tree = ast.parse((self.annotation or "").strip("'\""), mode="eval")
        except SyntaxError:
            return ()
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        values: list[Any] = [True, False] if "bool" in names else []
        values += [value for value in constants if value is not None] if "Literal" in names else []
        return tuple(map(inline, [*values, None] if "Optional" in names or None in constants else values))


@dataclass(frozen=True)
class CallableFacts:
    """A callable: the first paragraph of its docstring, where it stands, and its arguments by name."""

    summary: str | None
    place: str
    arguments: dict[str, Argument]


class Callables:
    """The callables of one configuration, looked up on demand; every source is read once."""

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
            return _facts(self._sources, found.definition, target.replace(":", ".").rpartition(".")[2], found.signature)
        except (ConfigError, Undecided, OSError):
            return None


def _facts(sources: Sources, found: Definition, name: str, signature: Signature | None) -> CallableFacts:
    """What is known of a callable.

    Args:
        sources: Where it was found.
        found: A function, or a class: the callable itself, or the owner of the method `name`.
        name: The last word of the target.
        signature: What it takes, where that is certain.
    """
    is_method = isinstance(found.node, ast.ClassDef) and found.node.name != name
    lineage = [base for base in bases(sources, found) if isinstance(base, Definition)] if found.is_class else [found]
    method = next(filter(None, (base.member(name) for base in lineage)), None) if is_method else None
    texts = [_docstring(method)] if method else [text for base in lineage for text in _docstrings(sources, base)]
    meanings: dict[str, str] = {}
    for text in texts:
        meanings = argument_meanings(text) | meanings
    written = written_parameters(sources, found, name if is_method else None)
    arguments = {
        each: Argument(
            meanings.get(each),
            *(written[each].annotation, _default(written[each].default)) if each in written else (None, None),
            is_required=signature is not None and each in signature.required,
        )
        for each in (signature.names if signature is not None else written)
        if each not in ("self", "cls")
    }
    owner = next((base for base in lineage if method is not None and base.member(name) is method), found)
    line = (method or owner.node).lineno
    place = Origin("file", str(owner.module.path), line=line).short()
    return CallableFacts(next(filter(None, map(summary, texts)), None), place, arguments)


def _default(written: str | None) -> str | None:
    """The default; that of `field(default=1)` and its like is their keyword `default`."""
    tree = ast.parse(written, mode="eval").body if written else None
    keywords = tree.keywords if isinstance(tree, ast.Call) else []
    return next((ast.unparse(keyword.value) for keyword in keywords if keyword.arg == "default"), written)


def _docstring(node: ast.AST | None) -> str | None:
    return ast.get_docstring(node) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else None


def _docstrings(sources: Sources, found: Definition) -> Iterator[str | None]:
    """The docstrings of a function, or of a class and its constructor; also one assigned to `__doc__` later."""
    own = _docstring(found.node)
    if own is None and isinstance(found.node, ast.ClassDef):
        text = sources.text(found.module.path)
        for node in ast.parse(text).body if b"__doc__" in text else ():
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == f"{found.node.name}.__doc__":
                own = _text_value(sources, found.module, node.value)
    yield own
    yield _docstring(found.member("__init__"))


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
    binding = imported(sources, module, node.id) if isinstance(node, ast.Name) else None
    value = binding.value if binding else None
    return str(value.value) if isinstance(value, ast.Constant) else ""


def summary(docstring: str | None) -> str | None:
    r"""The first paragraph as one line.

    >>> summary("A GPT-2\n    with fresh weights.\n\n    More.")
    'A GPT-2 with fresh weights.'
    """
    first = inspect.cleandoc(docstring or "").partition("\n\n")[0]
    is_code = first.startswith((">>>", "```"))
    return None if is_code else " ".join(first.split()) or None


def argument_meanings(docstring: str | None) -> dict[str, str]:
    r"""The text of each argument on one line.

    >>> argument_meanings("Adds.\n\nArgs:\n    a (int, optional): one\n        number.\n    b: another.\n")
    {'a': 'one number.', 'b': 'another.'}
    """
    lines = inspect.cleandoc(docstring or "").splitlines()
    headers = [index for index, line in enumerate(lines) if _HEADER.fullmatch(line.strip())]
    if not headers:
        return {}
    body = _indented_below(lines, headers[0])
    first = next((line for line in body if line.strip()), "")
    indent = len(first) - len(first.lstrip())
    found: dict[str, str] = {}
    names: list[str] = []
    for line in body:
        at_indent = len(line) - len(line.lstrip()) == indent
        entry = _ENTRY.fullmatch(line.strip()) if at_indent else None
        if entry:
            names = [name.strip(" *") for name in entry["names"].split(",")]
        text = (entry["text"] or "") if entry else line
        for name in names:
            found[name] = f"{found.get(name, '')} {text.strip()}".strip()
    return {name: text for name, text in found.items() if text}


def _indented_below(lines: list[str], header: int) -> list[str]:
    """The lines after `header` that are indented deeper than it, blank ones between them included."""
    depth = len(lines[header]) - len(lines[header].lstrip())
    body: list[str] = []
    for line in lines[header + 1 :]:
        if line.strip() and len(line) - len(line.lstrip()) <= depth:
            break
        body.append(line)
    return body
