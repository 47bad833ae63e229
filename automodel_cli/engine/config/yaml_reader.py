"""YAML 1.2 text to plain values, with the position of every value.

PyYAML parses; this module resolves. It guarantees that `2e-4` is a number, `0123` is 123,
`yes` is a string, and `none`, `null`, `~` are null. It refuses, with the line: tags that
construct objects, repeated keys, keys that are not text, and files that are too large, too
deep, or that expand too far through aliases.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from automodel_cli.engine.bounded import UnsoundError, read_bytes
from automodel_cli.engine.config.origin import KeyPath, Kind, Origin
from automodel_cli.engine.config.suggest import no_configuration
from automodel_cli.errors import ConfigError

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_NODES = 20_000
MAX_NUMBER_CHARACTERS = 400  # Python takes long for digits without end, and refuses to print them
_SHOWN_CHARACTERS = 60  # of a value or key in a message

# YAML 1.2, 5.1: everything else is refused unescaped.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_TAB_BEFORE_TEXT = re.compile(r" *\t")

_TOO_MANY = f"a configuration holds at most {MAX_NODES:,} keys and values, aliases expanded; this has more"
_TOO_DEEP = f"sections may be nested {MAX_DEPTH} deep, aliases expanded; this one is deeper"

_PREFIX = "tag:yaml.org,2002:"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the C loader may be absent
    """A safe loader whose plain scalars follow the YAML 1.2 core schema."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # PyYAML's own class attribute, replaced on purpose


# `none` beside `null`: guides of this field write `dp_size: none`. Underscores in integers are
# YAML 1.1, kept because `max_steps: 10_000` otherwise becomes text.
_PATTERNS = {
    "null": (r"(?:~|null|Null|NULL|none|None|)", ["~", "n", "N", ""]),
    "bool": (r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
    "int": (r"(?:[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+)", list("-+0123456789")),
    "float": (
        r"(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))",
        list("-+.0123456789"),
    ),
    "merge": (r"(?:<<)", ["<"]),
}
for _name, (_pattern, _first) in _PATTERNS.items():
    _Loader.add_implicit_resolver(_PREFIX + _name, re.compile(f"^{_pattern}$"), _first)


@dataclass
class Parsed:
    """Values of one YAML document, and the origin of each value and each key."""

    value: Any
    origins: dict[KeyPath, Origin] = field(default_factory=dict)
    key_origins: dict[KeyPath, Origin] = field(default_factory=dict)


def read_yaml(path: Path, kind: Kind = "file") -> Parsed:
    """Reads a YAML file whose top level is a mapping.

    Raises:
        ConfigError: The file is missing, unreadable, not UTF-8, not YAML, or beyond the bounds.
    """
    try:
        if kind == "checkpoint":
            data = read_bytes(path, MAX_BYTES)
        else:  # a user's own may come out of a pipe
            with path.open("rb") as stream:
                data = stream.read(MAX_BYTES + 1)
    except UnsoundError as error:
        raise ConfigError(f"the configuration cannot be read: {error}", where=str(path)) from error
    except OSError as error:
        raise no_configuration(path, error) from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"a configuration has at most {MAX_BYTES:,} bytes; this file has more", where=str(path))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"byte {error.start} is not UTF-8", where=str(path)) from error
    parsed = parse_yaml(text, source=str(path), kind=kind)
    if parsed.value is None:
        parsed.value = {}
    if not isinstance(parsed.value, dict):
        raise ConfigError("the top level must be a mapping of sections (`model:`, `dataset:`, ...)", where=str(path))
    return parsed


def parse_yaml(text: str, *, source: str, kind: Kind) -> Parsed:
    """Parses one YAML document from `text`; positions are reported under `source`."""
    if unprintable := _UNPRINTABLE.search(text):
        before = text[: unprintable.start()]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        message = f"not valid YAML: the character U+{ord(unprintable[0]):04X} is not text"
        raise ConfigError(message, where=f"{source}:{line}:{column}")
    try:
        _check_bounds(text, source)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = source if kind == "option" else _place(source, mark)
        lines = text.split("\n")
        if mark is not None and mark.line < len(lines) and (tab := _TAB_BEFORE_TEXT.match(lines[mark.line])):
            where = source if kind == "option" else f"{source}:{mark.line + 1}:{tab.end()}"
            message = "not valid YAML: a tab stands before the text of this line, and YAML indents by spaces only"
            raise ConfigError(message, where=where, help="put spaces in its place") from error
        raise ConfigError(f"not valid YAML: {error.problem or error.context}", where=where) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {error}", where=source) from error
    builder = _Builder(source, kind)
    value = builder.build(node, ()) if node is not None else None
    return Parsed(value, builder.origins, builder.key_origins)


def parse_value(text: str, *, source: str) -> Any:
    """The value of one command-line override, YAML-typed: `2e-4`, `null`, `[0.9, 0.95]`, `text`."""
    return parse_yaml(text, source=source, kind="option").value


def _check_bounds(text: str, source: str) -> None:
    """Refuses deep and large documents from their events, before any tree is built."""
    depth, num_nodes = 0, 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.NodeEvent):
            num_nodes += 1
            if num_nodes > MAX_NODES:
                raise ConfigError(_TOO_MANY, where=_place(source, event.start_mark))
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise ConfigError(_TOO_DEEP, where=_place(source, event.start_mark))
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _place(source: str, mark: Any) -> str:  # the parser in C has marks of a class of its own
    return f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source


class _Builder:
    """Turns a node tree into values; counts what aliases and merges expand to."""

    def __init__(self, source: str, kind: Kind) -> None:
        self.source = source
        self.kind = kind
        self.origins: dict[KeyPath, Origin] = {}
        self.key_origins: dict[KeyPath, Origin] = {}
        self._num_nodes = 0
        self._open: set[int] = set()

    def origin(self, node: yaml.Node) -> Origin:
        if self.kind == "option":
            return Origin("option", self.source)
        return Origin(self.kind, self.source, node.start_mark.line + 1, node.start_mark.column + 1)

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        self._count(node)
        self.origins[path] = self.origin(node)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if isinstance(node, yaml.SequenceNode):
            with self._inside(node):
                self._expect_tag(node, "seq")
                return [self.build(child, (*path, index)) for index, child in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            raise self.error(node, "a value must be a scalar, a list or a mapping")
        return self._mapping(node, path)

    def _count(self, node: yaml.Node) -> None:
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES:
            raise self.error(node, _TOO_MANY)

    @contextmanager
    def _inside(self, node: yaml.Node) -> Iterator[None]:
        """While the parts of a list or mapping are built: aliases and merges may nest without end."""
        if id(node) in self._open:
            raise self.error(node, "an alias refers to the value that contains it")
        if len(self._open) >= MAX_DEPTH:
            raise self.error(node, _TOO_DEEP)
        self._open.add(id(node))
        yield
        self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        with self._inside(node):
            self._expect_tag(node, "map")
            return self._entries(node, path)

    def _entries(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        seen: dict[str, int] = {}
        merges = [value for key, value in node.value if key.tag == _PREFIX + "merge"]
        for value in (inner for merge in merges for inner in _merge_sources(merge)):
            if not isinstance(value, yaml.MappingNode):
                raise self.error(value, "`<<` merges a mapping or a list of mappings")
            # The first of several merged mappings wins, and the mapping's own keys win over all (YAML merge type).
            self._count(value)
            for name, inner in self._mapping(value, path).items():
                result.setdefault(name, inner)
        for key_node, value_node in node.value:
            if key_node.tag == _PREFIX + "merge":
                continue
            key = self._key(key_node)
            if key in seen:
                first = f"line {seen[key]}"
                raise self.error(key_node, f"the key `{_cut(key)}` stands here and in {first}; a key may stand once")
            seen[key] = key_node.start_mark.line + 1
            self._count(key_node)
            self.key_origins[(*path, key)] = self.origin(key_node)
            result[key] = self.build(value_node, (*path, key))
            if not isinstance(value_node, yaml.ScalarNode) and not value_node.flow_style:
                # A block starts on the line after its key; people look for the key.
                self.origins[(*path, key)] = self.origin(key_node)
        return result

    def _key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self.error(node, "a key must be text")
        return str(node.value)

    def _expect_tag(self, node: yaml.Node, name: str) -> None:
        if node.tag != _PREFIX + name:
            raise self.error(node, f"the tag `{_shown(node.tag)}` is refused: a configuration holds plain values only")

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        name = node.tag.removeprefix(_PREFIX)
        text = str(node.value)
        if name in ("int", "float") and len(text) > MAX_NUMBER_CHARACTERS:
            message = f"a number has at most {MAX_NUMBER_CHARACTERS} characters; this one has {len(text):,}"
            raise self.error(node, message)
        if name in ("str", "merge"):
            return text
        try:
            if name == "null":
                return None
            if name == "bool":
                return {"true": True, "false": False}[text.lower()]
            if name == "int":
                return _integer(text)
            if name == "float":
                digits = text.replace("_", "").lower()
                return float(digits.replace(".", "") if digits.endswith((".inf", ".nan")) else digits)
        except (KeyError, ValueError) as error:
            raise self.error(node, f"`{_cut(text)}` is not a value of the type `{_shown(node.tag)}`") from error
        raise self.error(node, f"the tag `{_shown(node.tag)}` is refused: a configuration holds plain values only")

    def error(self, node: yaml.Node, message: str) -> ConfigError:
        return ConfigError(message, where=str(self.origin(node)))


def _merge_sources(node: yaml.Node) -> list[yaml.Node]:
    return list(node.value) if isinstance(node, yaml.SequenceNode) else [node]


def _integer(text: str) -> int:
    digits = text.replace("_", "")
    if digits.startswith(("0o", "0x")):
        return int(digits, 0)
    return int(digits, 10)


def _shown(tag: str) -> str:
    return _cut(tag.replace(_PREFIX, "!!"))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def plain_types(value: Any) -> Any:
    """A copy of nested mappings and lists as plain `dict` and `list`."""
    if isinstance(value, Mapping):
        return {key: plain_types(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain_types(inner) for inner in value]
    return value
