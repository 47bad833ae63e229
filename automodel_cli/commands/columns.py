"""Tables that keep their meaning in a narrow terminal: no name, key or number is cut or broken.

Columns are left out one by one, the least important first, until the table fits. If the columns that must stay do not
fit either, a cell that is too long stands on a line of its own below. Only text is wrapped, and only between words.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import typer

from automodel_cli.engine.config.emit import steady

BOLD, DIM, RED, GREEN, YELLOW, CYAN = "1", "2", "31", "32", "33", "36"
_GAP = 2
_LEAST = 8  # characters that a column is aligned to even in the narrowest terminal
_LEAST_TEXT = 24
_BELOW = 4
# Units, which stay with the number before them.
_UNIT = re.compile(r"(?<=\d) (?=(?:[KMGT]i?B|bytes|tokens|nats|ms|s|min|h|x|TFLOP/s)\b)|(?<=\d x) (?=\d)")

# The style of the cell in a row and column; empty for none.
Style = Callable[[int, int], str]


def is_terminal() -> bool:
    """Whether control codes may be written."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def room() -> int | None:
    """Width of the output in characters; None for a pipe, which has no limit unless COLUMNS sets one."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() or os.environ.get("COLUMNS") else None


def styled(text: str, code: str) -> str:
    """The text in a style, where styles are shown."""
    return f"\x1b[{code}m{text}\x1b[0m" if code and is_terminal() and not os.environ.get("NO_COLOR") else text


def show(
    rows: Sequence[Sequence[str]],
    *,
    first_to_go: Sequence[int] = (),
    right: Collection[int] = (),
    text: Collection[int] = (),
    style: Style = lambda row, column: "",
) -> None:
    """Prints a table; see `lines`."""
    for line in lines(rows, room(), first_to_go=first_to_go, right=right, text=text, style=style):
        typer.echo(line)


def lines(
    rows: Sequence[Sequence[str]],
    limit: int | None,
    *,
    first_to_go: Sequence[int] = (),
    right: Collection[int] = (),
    text: Collection[int] = (),
    style: Style = lambda row, column: "",
) -> list[str]:
    """Lays a table out.

    Args:
        rows: Cells without line breaks; all rows have as many.
        limit: Width of the terminal; None for no limit.
        first_to_go: Columns that may be left out, the first one first.
        right: Columns that are aligned to the right.
        text: Columns of words, which may be wrapped.
        style: Style of the cell in a row and column.

    >>> lines([("a", "1", "note"), ("b", "22", "note")], 8, first_to_go=[2], right=[1])
    ['a   1', 'b  22']
    """
    rows = [[steady(cell) for cell in row] for row in rows]
    widths = {column: max(map(len, cells)) for column, cells in enumerate(zip(*rows, strict=True))}
    gone = list(first_to_go)
    while limit is not None and gone and _total(widths) > limit:
        del widths[gone.pop(0)]
    if limit is not None and _total(widths) > limit:
        for column in text:  # as wide as the other columns allow, or else on lines below
            left = widths[column] + limit - _total(widths)
            widths[column] = left if left >= _LEAST_TEXT else 0
    while limit is not None and _total(widths) > limit and max(widths.values()) > _LEAST:
        widths[max(widths, key=lambda column: widths[column])] -= 1
    found: list[str] = []
    for number, row in enumerate(rows):
        line, start = _Line(limit), 0
        for column, width in widths.items():
            cell = row[column].rjust(width) if column in right else row[column]
            if cell.strip():
                line.place(cell, start, style(number, column), is_text=column in text)
            start += width + _GAP
        found += [*line.done, line.shown]
    return found


def wrapped(text: str, limit: int | None, indent: str = "") -> list[str]:
    """A sentence on as many lines as it needs; words are never cut."""
    if limit is None:
        return [text]
    whole = _UNIT.sub("\0", text)
    found = textwrap.wrap(whole, limit, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\0", " ") for line in found] or [text]


def printable(text: str, keep: str = "") -> str:
    r"""The text with every character that could steer a terminal as an escape, except those of `keep`.

    >>> printable("a\x1b[2J")
    'a\\x1b[2J'
    """
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


def _total(widths: dict[int, int]) -> int:
    return sum(widths.values()) + _GAP * (len(widths) - 1)


@dataclass
class _Line:
    """The lines of one row while it is laid out: those that are full, and the last one."""

    limit: int | None
    done: list[str] = field(default_factory=list)
    shown: str = ""
    length: int = 0  # of `shown`, without control codes

    def place(self, cell: str, start: int, code: str, *, is_text: bool) -> None:
        pieces = [cell]
        if self.limit is not None and start + len(cell) > self.limit:
            cell = cell.strip()
            if len(cell) > (_LEAST_TEXT if is_text else self.limit - _BELOW):
                start = start if self.limit - start >= _LEAST_TEXT else min(start, _BELOW)
                pieces = wrapped(cell, self.limit - start)
            else:
                pieces = [cell]
            # Moved to the left until it fits, but not into the column of names.
            start = max(min(start, _BELOW), min(start, self.limit - max(map(len, pieces))))
        for number, piece in enumerate(pieces):
            if number or (self.length and self.length + _GAP > start):
                self.done.append(self.shown)
                self.shown, self.length = "", 0
            self.shown += " " * (start - self.length) + styled(piece, code)
            self.length = start + len(piece)
