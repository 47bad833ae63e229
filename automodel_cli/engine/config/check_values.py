"""The values of a section against the annotations in the source of its `_target_`; imports nothing.

Only code of amcli and torch is held to its annotations, and only where they are made of plain types: numbers, text,
true or false, null, and tuples of a fixed length.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.origin import KeyPath, dotted
from automodel_cli.engine.config.secrets import is_masked
from automodel_cli.engine.config.source_modules import Sources
from automodel_cli.engine.config.source_names import Definition
from automodel_cli.engine.config.source_signatures import written_parameters
from automodel_cli.engine.config.target_errors import Parameter
from automodel_cli.engine.config.values import resolve_env
from automodel_cli.errors import ConfigError

_PACKAGES = ("automodel_cli", "torch")
_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "None": "null"}


def value_problems(
    config: Config, path: KeyPath, given: Collection[str], found: Definition, sources: Sources, *, name: str
) -> Iterator[ConfigError]:
    """The given values that the annotations of a function or a class exclude.

    Args:
        config: The whole configuration.
        path: Of the section.
        given: Names that the section gives.
        found: What its target stands for.
        sources: Where that was found.
        name: The last word of the target; a method of a class is not looked at.
    """
    if found.module.name.partition(".")[0] not in _PACKAGES or getattr(found.node, "name", None) != name:
        return
    written = written_parameters(sources, found)
    for each in given:
        origin = config.origin((*path, each))
        raw = config.at((*path, each))
        if each not in written or isinstance(raw, Mapping) or is_masked(dotted((*path, each)), raw):
            continue
        try:
            value = [resolve_env(one, origin) for one in raw] if isinstance(raw, list) else resolve_env(raw, origin)
        except ConfigError:
            continue  # said where it is used
        wanted = excluded(value, written[each])
        if wanted:
            message = f"{dotted((*path, each))} is {'null' if value is None else repr(value)}, but it must be {wanted}"
            yield ConfigError(message, where=str(origin))


def excluded(value: Any, parameter: Parameter) -> str | None:
    """What the value must be instead, in words; None where it fits, or the annotation is not made of plain types.

    >>> excluded("128", Parameter("int | None"))
    'a whole number or null'
    >>> excluded([0.9], Parameter("tuple[float | Tensor, float | Tensor]"))
    'a list of 2: a number, a number'
    """
    if parameter.annotation is None or (value is None and parameter.default == "None"):
        return None
    try:
        kinds = _alternatives(ast.parse(parameter.annotation.strip("'\""), mode="eval").body)
    except SyntaxError:
        return None
    if not kinds or any(_words(kind) is None for kind in kinds):
        return None
    return None if any(_fits(value, kind) for kind in kinds) else " or ".join(filter(None, map(_words, kinds)))


def _alternatives(node: ast.expr) -> list[ast.expr]:
    """`A | B` in parts. A tensor is none of them: a configuration cannot hold one."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [*_alternatives(node.left), *_alternatives(node.right)]
    return [] if ast.unparse(node).rpartition(".")[2] == "Tensor" else [node]


def _items(kind: ast.expr) -> list[list[ast.expr]] | None:
    """The alternatives of each item of a tuple of a fixed length; None for any other kind."""
    if (
        not isinstance(kind, ast.Subscript)
        or ast.unparse(kind.value) != "tuple"
        or not isinstance(kind.slice, ast.Tuple)
    ):
        return None
    return [_alternatives(item) for item in kind.slice.elts]


def _words(kind: ast.expr) -> str | None:
    items = _items(kind)
    if items is None:
        return _WORDS.get(ast.unparse(kind))
    words = [[_words(one) for one in item] for item in items]
    if not all(item and None not in item for item in words):
        return None
    return f"a list of {len(items)}: " + ", ".join(" or ".join(map(str, item)) for item in words)


def _fits(value: Any, kind: ast.expr) -> bool:
    items = _items(kind)
    if items is not None:
        return (
            isinstance(value, list | tuple)
            and len(value) == len(items)
            and all(any(_fits(one, each) for each in item) for one, item in zip(value, items, strict=True))
        )
    match ast.unparse(kind):
        case "int":
            return isinstance(value, int) and not isinstance(value, bool)
        case "float":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "bool":
            return isinstance(value, int)  # 0 and 1 say it, too
        case "str":
            return isinstance(value, str)
    return value is None
