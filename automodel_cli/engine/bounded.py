"""Reads files that may have been changed by others: bounded in size, depth and number of values, checked in type.

Nothing here waits or allocates without a bound: a pipe, a device or a directory in the place of a file is refused
before it is read, JSON is refused by its number of values before it is parsed. JSON is strict: UTF-8, no key twice,
no `NaN` or `Infinity`, no number that no double or 64-bit integer comes near, no half of a surrogate pair.
"""

from __future__ import annotations

import functools
import io
import json
import math
import os
import re
import stat
import types
import typing
from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from automodel_cli.errors import AmcliError

MAX_JSON_BYTES = 16 * 2**20
MAX_JSON_DEPTH = 64
MAX_JSON_VALUES = 1_000_000
MAX_WHOLE = 2**63 - 1
MAX_NAME_BYTES = 255  # of a file's name, on nearly every file system
_MAX_NUMBER_CHARACTERS = 100
_SHOWN_CHARACTERS = 60
_QUICK_DEPTH = 8
_LONG_NUMBER = re.compile(rb"[0-9]{%d}" % _MAX_NUMBER_CHARACTERS)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))

T = TypeVar("T")


class UnsoundError(ValueError):
    """A file or value is not what it must be; the text says what was found and what the rule is."""


def open_regular(path: Path, max_bytes: int | None = None) -> io.FileIO:
    """Opens a regular file for reading, without a buffer.

    Raises:
        UnsoundError: It is no regular file, or larger than `max_bytes`.
        OSError: It is not there, or cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UnsoundError("it is not a regular file")
    if max_bytes is not None and status.st_size > max_bytes:
        raise UnsoundError(f"it has {status.st_size:,} bytes, and at most {max_bytes:,} are read")
    # Without waiting: in the meantime a pipe may have taken the place of the file.
    flags = getattr(os, "O_NONBLOCK", 0)
    return io.FileIO(path, opener=lambda name, mode: os.open(name, mode | flags))


def read_bytes(path: Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """The contents of a regular file.

    Raises:
        UnsoundError: It is no regular file, or larger than `max_bytes`.
        OSError: It is not there, or cannot be read.
    """
    with open_regular(path, max_bytes) as raw, io.BufferedReader(raw) as file:
        # As much as it has, and one more: memory for what it may have would be taken at once.
        content = file.read(min(max_bytes, os.fstat(raw.fileno()).st_size) + 1)
    if len(content) > max_bytes:
        raise UnsoundError(f"it has more than the {max_bytes:,} bytes that are read")
    return content


def parse_json(
    content: bytes,
    *,
    max_depth: int = MAX_JSON_DEPTH,
    max_values: int = MAX_JSON_VALUES,
    allow_nan: bool = False,
    allow_surrogates: bool = False,
) -> Any:
    """The value of a JSON text.

    Args:
        content: UTF-8, with or without a byte order mark.
        max_depth: Maximum nesting of lists and objects.
        max_values: Maximum number of members of all lists and objects together.
        allow_nan: Whether `NaN` and `Infinity` may stand there, as in configurations of transformers.
        allow_surrogates: Whether texts may be no Unicode, as names of files that are not UTF-8.

    Raises:
        UnsoundError: It is not JSON, or beyond a bound.
    """
    # Counted in texts too, so never too few; what a value takes in memory is bounded by that.
    if content.count(b",") + content.count(b"[") + content.count(b"{") > max_values:
        raise UnsoundError(f"it holds more than the {max_values:,} values that are read")
    try:
        value = json.loads(
            content.decode("utf-8-sig"),
            object_pairs_hook=_without_repeats,
            parse_constant=float if allow_nan else _refuse_constant,
            parse_float=_finite,
            parse_int=_whole if _LONG_NUMBER.search(content) else None,
        )
        if not _is_flat(content, max_depth) or not content.isascii() or b"\\u" in content:
            _check_values(value, max_depth, "surrogatepass" if allow_surrogates else "strict")
    except UnicodeDecodeError as error:
        raise UnsoundError(f"byte {error.start:,} is not UTF-8") from None
    except UnicodeEncodeError as error:
        raise UnsoundError(f"it holds half of a surrogate pair in {shown(error.object)}") from None
    except json.JSONDecodeError as error:
        raise UnsoundError(f"it is not JSON: {error}") from None
    except RecursionError:
        raise UnsoundError(f"it is nested more than {max_depth} deep") from None
    return value


def _is_flat(content: bytes, max_depth: int) -> bool:
    """Whether the brackets alone show that nothing is nested too deep, which saves a walk through all values."""
    brackets = content.translate(None, _NO_BRACKETS)
    for _ in range(min(max_depth, _QUICK_DEPTH)):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    return not brackets


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise UnsoundError(f"the key {shown(twice)} stands twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise UnsoundError(f"it holds {name}, which is no number of JSON")


def _finite(text: str) -> float:
    if len(text) > _MAX_NUMBER_CHARACTERS or not math.isfinite(number := float(text)):
        raise UnsoundError(f"it holds the number {shown(text)}, which is out of range")
    return number


def _whole(text: str) -> int:
    if len(text) > _MAX_NUMBER_CHARACTERS:
        raise UnsoundError(f"it holds a number of {len(text):,} digits, and at most {_MAX_NUMBER_CHARACTERS} are read")
    return int(text)


def _check_values(value: Any, max_depth: int, errors: str) -> None:
    """Refuses what is nested too deep, and by a `UnicodeEncodeError` texts that cannot be written anywhere."""
    level, depth = [value], 0
    while level:
        following: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                following += item.keys()
                following += item.values()
            elif isinstance(item, list):
                following += item
            elif isinstance(item, str) and not item.isascii():
                item.encode("utf-8", errors)
        if depth == max_depth and any(isinstance(item, dict | list) for item in level):
            raise UnsoundError(f"it is nested more than {max_depth} deep")
        level, depth = following, depth + 1


def read_object(
    path: Path,
    error: type[AmcliError],
    *,
    what: str = "the file",
    help: str | None = None,
    max_bytes: int = MAX_JSON_BYTES,
    allow_nan: bool = False,
    allow_surrogates: bool = False,
) -> dict[str, Any]:
    """The contents of a file that holds one JSON object.

    Args:
        path: The file.
        error: What to raise whatever is wrong.
        what: Names the file in the error, such as `the manifest`.
        help: For the error.
        max_bytes: Larger files are not read.
        allow_nan: As for `parse_json`.
        allow_surrogates: As for `parse_json`.

    Raises:
        AmcliError: `error`: there is no such file, it cannot be read, or it is no sound JSON object.
    """
    try:
        value = parse_json(read_bytes(path, max_bytes), allow_nan=allow_nan, allow_surrogates=allow_surrogates)
        if not isinstance(value, dict):
            raise UnsoundError(f"it is not a JSON object but {kind_of(value)}")
    except OSError as found:
        raise error(f"{what} cannot be read: {found.strerror or found}", where=str(path)) from found
    except UnsoundError as found:
        raise error(f"{what} is damaged: {found}", where=str(path), help=help) from found
    return value


def typed(cls: type[T], raw: Any, name: str = "", *, ignore_unknown: bool = False) -> T:
    """An instance of a dataclass from the JSON object that `dataclasses.asdict` would give.

    The annotations of its fields are the rules: whole numbers are from 0 to 2**63 - 1 and never true or false, other
    numbers finite, a tuple is a list. Fields with a default may be missing.

    Args:
        cls: The dataclass; its fields may be dataclasses, too.
        raw: As `parse_json` gave it.
        name: Name of `raw`, for errors.
        ignore_unknown: Pass over fields of `raw` that `cls` lacks.

    Raises:
        UnsoundError: A field is missing, unknown, or of another kind; the text begins with its dotted name.
    """
    if ignore_unknown and isinstance(raw, dict):
        known = {field.name for field in fields(cls)}  # type: ignore[arg-type]  # a dataclass, as the docstring says
        raw = {key: value for key, value in raw.items() if key in known}
    checked: T = _checked(cls, raw, name)
    return checked


def _checked(kind: Any, raw: Any, name: str) -> Any:
    arguments = typing.get_args(kind)
    origin = typing.get_origin(kind) or kind
    if origin in (types.UnionType, typing.Union):
        options = [option for option in arguments if option is not type(None)]
        return None if raw is None and len(options) < len(arguments) else _checked(options[0], raw, name)
    if is_dataclass(origin):
        return _dataclass(origin, raw, name)
    if origin is tuple and isinstance(raw, list):
        return tuple(_checked(arguments[0], item, f"{name}[{index}]") for index, item in enumerate(raw))
    if origin in (dict, Mapping) and isinstance(raw, dict):
        return {key: _checked(arguments[1], item, _below(name, key)) for key, item in raw.items()}
    if origin is int and type(raw) is int and 0 <= raw <= MAX_WHOLE:
        return raw
    is_number = math.isfinite(raw) if type(raw) is float else type(raw) is int and abs(raw) <= MAX_WHOLE
    if origin is float and is_number:
        return float(raw)
    if origin is Any or (origin in (str, bool) and type(raw) is origin):
        return raw
    rules = {int: "a whole number from 0 to 2**63 - 1", float: "a number", str: "a text", bool: "true or false"}
    rule = rules.get(origin, "a list" if origin is tuple else "an object")
    raise UnsoundError(f"{name or 'it'} is {shown(raw)}, but it must be {rule}")


def _dataclass(cls: Any, raw: Any, name: str) -> Any:
    if not isinstance(raw, dict):
        raise UnsoundError(f"{name or 'it'} is {shown(raw)}, but it must be an object")
    expected = {field.name: field for field in fields(cls) if field.init}
    if unknown := sorted(set(raw) - set(expected)):
        raise UnsoundError(f"{_below(name, unknown[0])} is unknown")
    for field in expected.values():
        if field.name not in raw and field.default is MISSING and field.default_factory is MISSING:
            raise UnsoundError(f"{_below(name, field.name)} is missing")
    hints = _hints(cls)
    return cls(**{key: _checked(hints[key], value, _below(name, key)) for key, value in raw.items()})


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _below(name: str, key: str) -> str:
    short = key if len(key) <= _SHOWN_CHARACTERS else f"{key[:_SHOWN_CHARACTERS]}..."
    return f"{name}.{short}" if name else short


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def shown(value: Any) -> str:
    """A value in an error, cut where it is long."""
    if isinstance(value, dict | list):
        return kind_of(value)
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def finite(value: Any) -> Any:
    """The same value with null for every number that a reader of JSON may refuse."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        return value if abs(value) < 2**64 else None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value
