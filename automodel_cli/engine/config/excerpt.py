"""The line of a file, or the option, that an error is about, with a caret below the place.

Errors carry their place as text, since `errors.py` lies below origins; the text has the form of
`Origin.__str__`, and this module reads it back. It guarantees that an excerpt fits in the terminal
and holds no control characters. Where nothing can be shown for certain (the file is gone, is no
ordinary file, or has no such line) there is no excerpt, and never a second error.
"""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from automodel_cli.engine.config.load import BUILTIN_PATH, BUILTIN_SOURCE
from automodel_cli.engine.config.origin import Origin
from automodel_cli.engine.config.secrets import masked_text
from automodel_cli.engine.config.yaml_reader import MAX_BYTES
from automodel_cli.errors import AmcliError

_POSITION = re.compile(r"(?P<source>.+):(?P<line>[0-9]+):(?P<column>[0-9]+)")
_OPTION = re.compile(r"(?P<option>--(?:set|unset)) (?P<text>.+)", re.DOTALL)
_MIN_WIDTH = 20  # of the text shown, in however narrow a terminal
_MARGIN = 4  # what stays visible to the right of the caret in a line that is cut


def add_excerpts(error: AmcliError, arguments: Sequence[str] = ()) -> None:
    """Gives the error, and each of the problems that it lists, the excerpt that belongs to its place.

    Args:
        error: Changed in place; an excerpt that it has already stays.
        arguments: The command line, which options are quoted from.
    """
    for problem in error.problems:
        add_excerpts(problem, arguments)
    if error.excerpt is None and error.where is not None:
        error.excerpt = _of_place(error.where, arguments)


def file_excerpt(origin: Origin) -> str | None:
    """The line that an origin in a file names, and a caret under its column.

    >>> print(file_excerpt(Origin("file", "built-in quickstart.yaml", line=5, column=7)))
        5 | seed: 1337
          |       ^
    """
    if origin.line is None or origin.column is None:
        return None
    path = BUILTIN_PATH if origin.source == BUILTIN_SOURCE else Path(origin.source)
    line = _line_of(path, origin.line)
    # One column beyond the line is where YAML reports a text that ends too early.
    if line is None or not 1 <= origin.column <= len(line) + 1:
        return None
    return _marked(str(origin.line), masked_text(line), origin.column - 1, 1)


def option_excerpt(key: str, arguments: Sequence[str], option: str = "--set") -> str | None:
    """The last option of the command line that sets or unsets `key`, as it was typed, underlined.

    >>> print(option_excerpt("seed", ["config", "show", "--set", "seed=x"]))
          | --set seed=x
          |       ^^^^^^
    """
    found: tuple[str, str] | None = None
    blank: int | None = None
    for index, argument in enumerate(arguments):
        following = arguments[index + 1] if index + 1 < len(arguments) else ""
        name, equals, value = argument.partition("=")
        if name == option:
            typed = value if equals else following
            if key in (typed, typed.partition("=")[0].strip()):
                found, blank = (f"{option}=" if equals else f"{option} ", typed), None
        elif name == f"--{key}" and option == "--set":
            # As an assignment, behind which a secret is known; the blank of the command line comes back below.
            found, blank = ("", argument if equals else f"{argument}={following}"), None if equals else len(argument)
    if found is None:
        return None
    line = masked_text(found[0] + found[1])
    return _marked("", line if blank is None else f"{line[:blank]} {line[blank + 1 :]}", len(found[0]), len(found[1]))


def _of_place(where: str, arguments: Sequence[str]) -> str | None:
    if option := _OPTION.fullmatch(where):
        return option_excerpt(option["text"], arguments, option["option"])
    if position := _POSITION.fullmatch(where):
        return file_excerpt(Origin("file", position["source"], int(position["line"]), int(position["column"])))
    return None


def _line_of(path: Path, number: int) -> str | None:
    """Line `number` of a file, read within the bounds of a configuration; None where there is none."""
    try:
        if not path.is_file():  # opening a pipe would wait for its writer
            return None
        with path.open("rb") as stream:
            text = stream.read(MAX_BYTES).decode("utf-8-sig", errors="replace")
    except (OSError, ValueError):
        return None
    # The line breaks of YAML, which counts the lines; `splitlines` knows more, such as the form feed.
    lines = re.split("\r\n|[\r\n\x85\u2028\u2029]", text)
    return lines[number - 1] if 1 <= number <= len(lines) else None


def _marked(number: str, line: str, start: int, length: int) -> str:
    """Two lines: the text beside its number, and carets below `length` characters from `start`."""
    room = max(_MIN_WIDTH, shutil.get_terminal_size((100, 24)).columns - 9)
    left = max(0, min(start, start + min(length, room // 2) + _MARGIN - room))
    shown = "".join(_visible(character) for character in line[left : left + room])
    before, marked = shown[: start - left], shown[start - left : start - left + length]
    pad, carets = " " * sum(map(_width, before)), "^" * max(1, sum(map(_width, marked)))
    return f"{f'{number:>5} | {shown}'.rstrip()}\n      | {pad}{carets}"


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character == "\t" else "\N{REPLACEMENT CHARACTER}"


def _width(character: str) -> int:
    """Columns of a terminal that a character takes: a caret must stand below what it means."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
