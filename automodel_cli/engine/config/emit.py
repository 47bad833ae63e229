"""A configuration back to text, with the origin of every value as an aligned comment; and what differs between two.

The text is valid input again: reading the YAML gives equal values, and each line of the flat form
can follow `--set`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from automodel_cli.engine.config.config import TARGET, Config
from automodel_cli.engine.config.origin import KeyPath, Origin
from automodel_cli.engine.config.yaml_reader import parse_value
from automodel_cli.errors import ConfigError

# Text of a line, and the origin to note beside it.
_Line = tuple[str, str | None]

_PLAIN = re.compile(r"[A-Za-z0-9_./*~$-][A-Za-z0-9_ ./*:@%+=,(){}$~-]*")
# Tabs and line breaks apart: spaces of other scripts and joiners of emoji belong to texts.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")

# How the comment beside a value is shown: as it is, or dimmed on a terminal.
Note = Callable[[str], str]
# Stands for the value of a key that one of two configurations does not have.
ABSENT = "(absent)"


def to_yaml(config: Config, *, origins: bool = True, absolute_targets: bool = False, note: Note = str) -> str:
    """The configuration as YAML.

    Args:
        config: What to write.
        origins: Whether to append where each value came from.
        absolute_targets: Write `file.py:object` with an absolute path, so that the text means the
            same when it is read from another directory, such as a checkpoint.
        note: Decorates the comments.
    """
    return _aligned(_mapping(config, config.values, (), absolute_targets), origins, note)


def to_flat(config: Config, *, origins: bool = True, note: Note = str) -> str:
    r"""One `a.b.c=value` a line, in the form that `--set` takes.

    >>> to_flat(Config({"model": {"n_layer": 12, "sizes": [{"a": 1}]}}), origins=False)
    'model.n_layer=12\nmodel.sizes=[{a: 1}]\n'
    """
    lines = ((f"{key}={inline(value)}", label(config, key, value)) for key, value, _ in flat(config))
    return _aligned(lines, origins, note)


def _aligned(lines: Iterable[_Line], origins: bool, note: Note) -> str:
    lines = list(lines)
    if not origins:
        return "".join(f"{text}\n" for text, _ in lines)
    width = min(max((len(text) for text, origin in lines if origin), default=0), 80)
    return "".join(f"{text:<{width}}  {note(f'# {origin}')}\n" if origin else f"{text}\n" for text, origin in lines)


def label(config: Config, key: str, value: Any) -> str:
    """Where the value at a dotted key came from, as short text."""
    path: KeyPath = ()
    for part in key.split("."):
        path = (*path, int(part) if part.isdigit() and isinstance(config.at(path), list) else part)
    return _label(config, path, value)


def flat(config: Config) -> Iterator[tuple[str, Any, Origin]]:
    """Every leaf as (dotted key, value, origin)."""

    def walk(node: Any, path: KeyPath) -> Iterator[tuple[str, Any, Origin]]:
        if isinstance(node, Mapping) and node:
            for key, value in node.items():
                yield from walk(value, (*path, key))
        else:
            yield ".".join(map(str, path)), node, config.origin(path)

    yield from walk(config.values, ())


def _mapping(
    config: Config, node: Mapping[str, Any], path: KeyPath, absolute: bool
) -> Iterator[tuple[str, str | None]]:
    indent = "  " * len(path)
    for key, value in node.items():
        here = (*path, key)
        yield from _entry(f"{indent}{_scalar(key)}:", value, config, here, absolute)


def _entry(head: str, value: Any, config: Config, path: KeyPath, absolute: bool) -> Iterator[_Line]:
    if isinstance(value, Mapping) and value:
        yield head, None
        yield from _mapping(config, value, path, absolute)
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        yield head, None
        for index, item in enumerate(value):
            # A mapping in a list goes on the line after the dash: valid, and one rule for all.
            dash = "  " * len(path) + "-"
            yield from _entry(dash, item, config, (*path, index), absolute)
    else:
        if absolute and path[-1] == TARGET and isinstance(value, str):
            value = absolute_target(value, config.origin(path))
        yield f"{head} {inline(value)}", _label(config, path, value)


def _label(config: Config, path: KeyPath, value: Any) -> str:
    """The origin of a value, and those of list elements that were overridden one by one."""
    elements = [(*path, index) for index in range(len(value))] if isinstance(value, list) else []
    overridden = [config.origin(element) for element in elements if config.origin(element).kind == "option"]
    own = config.origin(path)
    text = ", ".join(origin.short() for origin in [own, *(item for item in overridden if item != own)])
    return printable(text)  # a file may be called anything; a line break in its name would end the comment


def printable(text: str) -> str:
    r"""The text without control characters, which could end a line or steer a terminal.

    >>> printable("a\tb")
    'a\ufffdb'
    """
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def steady(text: str) -> str:
    r"""Lines without control characters: what files and models say may not steer the terminal that shows it.

    >>> steady("a\tb\n\x1b[2Jc")
    'a\tb\n\ufffd[2Jc'
    """
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def inline(value: Any, *, nested: bool = False) -> str:
    """A value as YAML on one line.

    >>> inline([0.9, None, {"a": "x, y"}])
    '[0.9, null, {a: "x, y"}]'
    """
    if isinstance(value, list):
        return "[" + ", ".join(inline(item, nested=True) for item in value) + "]"
    if isinstance(value, Mapping):
        pairs = (f"{_scalar(key, nested=True)}: {inline(inner, nested=True)}" for key, inner in value.items())
        return "{" + ", ".join(pairs) + "}"
    return _scalar(value, nested=nested)


def setting(key: str, value: Any) -> str:
    """What follows `--set`.

    >>> setting("dataset.file_pattern", "a: b/*.bin"), setting("seed", 3)
    ('dataset.file_pattern="a: b/*.bin"', 'seed=3')
    """
    return f"{key}={inline(value)}"


def _scalar(value: Any, *, nested: bool = False) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isnan(value):
            return ".nan"
        return repr(value) if math.isfinite(value) else ("-.inf" if value < 0 else ".inf")
    if isinstance(value, int):
        return str(value)
    return value if _reads_back(value, nested) else _quoted(value)


def _quoted(text: str) -> str:
    """A double-quoted YAML scalar. Not JSON: YAML has no surrogate pairs, and escapes more."""

    def escaped(character: str) -> str:
        if character in '"\\':
            return f"\\{character}"
        if character.isprintable():
            return character
        code = ord(character)
        return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"

    return '"' + "".join(map(escaped, text)) + '"'


def _reads_back(text: str, nested: bool) -> bool:
    """Whether the text, unquoted, is read as itself."""
    if not _PLAIN.fullmatch(text) or (nested and set(text) & set(",{}")):
        return False
    try:
        return bool(parse_value(text, source="") == text)
    except ConfigError:
        return False


def absolute_target(target: str, origin: Origin) -> str:
    """`file.py:object` with an absolute path; any other target as it is."""
    path, colon, name = target.rpartition(":")
    return (
        f"{(origin.directory() / Path(path).expanduser()).resolve()}:{name}"
        if colon and path.endswith(".py")
        else target
    )


class Change(NamedTuple):
    """One key whose value differs; `ABSENT`, without an origin, where a side does not have it."""

    key: str
    old: Any
    new: Any
    old_origin: str | None = None
    new_origin: str | None = None

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}"


def differences(old: Config, new: Config) -> list[Change]:
    """The keys with different values, in the order of `new`; origins do not count.

    >>> [str(change) for change in differences(Config({"a": 1}), Config({"a": 2}))]
    ['a: 1 -> 2']
    """
    before, after = _leaves(old), _leaves(new)
    keys = [*after, *(key for key in before if key not in after)]
    nothing = (ABSENT, None)
    found = [(key, before.get(key, nothing), after.get(key, nothing)) for key in keys]
    return [Change(key, a, b, from_a, from_b) for key, (a, from_a), (b, from_b) in found if not _same(a, b)]


def _leaves(config: Config) -> dict[str, tuple[Any, str | None]]:
    """Value and origin of each leaf; file targets absolute, as a checkpoint has them."""
    found: dict[str, tuple[Any, str | None]] = {}
    for key, value, origin in flat(config):
        is_target = key.rpartition(".")[2] == TARGET and isinstance(value, str)
        found[key] = (absolute_target(value, origin) if is_target else value, label(config, key, value))
    return found


def _same(a: Any, b: Any) -> bool:
    """Equality of YAML values: 1 is 1.0, but not true, and a NaN is a NaN."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and (a == b or (a != a and b != b))
