"""A curve as text: dots of Braille where the output can show them, stars where it cannot.

A Braille sign holds 2 x 4 dots, so that a plot of 64 x 12 signs has 128 x 48 of them.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # by row and column within a sign
_BLANK = 0x2800
_HEIGHT = 12
_MAX_WIDTH = 96


def sample_steps(num_steps: int, most: int) -> list[int]:
    """At most `most` of the steps 0 to num_steps - 1, evenly, with the first and the last.

    >>> sample_steps(10, 4), sample_steps(3, 9)
    ([0, 3, 6, 9], [0, 1, 2])
    """
    if num_steps <= most:
        return list(range(num_steps))
    return sorted({round(index * (num_steps - 1) / (most - 1)) for index in range(most)})


def can_show_braille() -> bool:
    """Whether the standard output takes signs beyond ASCII."""
    encoding = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "")
    return encoding.startswith("utf") and os.environ.get("TERM") != "dumb"


def plot(value_at: Callable[[int], float], num_steps: int, *, braille: bool, x_labels: Sequence[str]) -> list[str]:
    """The lines of a plot of `value_at(step)` for the steps 0 to num_steps - 1, from zero up.

    Args:
        value_at: The curve; never negative.
        num_steps: At least 1.
        braille: Whether Braille may be used; else stars.
        x_labels: What stands below the axis at its beginning and at its end.
    """
    width = max(16, min(_MAX_WIDTH, shutil.get_terminal_size((80, 24)).columns - 14))
    columns, rows = (2 * width, 4 * _HEIGHT) if braille else (width, _HEIGHT)
    values = [value_at(round(column * (num_steps - 1) / (columns - 1))) for column in range(columns)]
    top = max(values) or 1.0
    levels = [min(rows - 1, round((1.0 - value / top) * (rows - 1))) for value in values]
    lines = _braille(levels, width) if braille else _stars(levels, width)
    labels = {0: f"{top:.2e}", (_HEIGHT - 1) // 2: f"{top * (1 - ((_HEIGHT - 1) // 2) / (_HEIGHT - 1)):.2e}"}
    labels[_HEIGHT - 1] = "0"
    bar, corner, dash = ("│", "└", "─") if braille else ("|", "+", "-")
    drawn = [f"{labels.get(row, ''):>10} {bar}{line.rstrip()}" for row, line in enumerate(lines)]
    begin, end = x_labels
    gap = " " * max(1, width - len(begin) - len(end))
    return [*drawn, f"{'':>10} {corner}{dash * width}", f"{'':>12}{begin}{gap}{end}"]


def _joined(levels: Sequence[int]) -> list[range]:
    """The rows that each column fills: from the level before to its own, so that steep parts have no gaps."""
    before = [levels[0], *levels[:-1]]
    filled = []
    for old, new in zip(before, levels, strict=True):
        filled.append(range(new, max(new + 1, old)) if new <= old else range(old + 1, new + 1))
    return filled


def _braille(levels: Sequence[int], width: int) -> list[str]:
    signs = [[_BLANK] * width for _ in range(_HEIGHT)]
    for column, rows in enumerate(_joined(levels)):
        for row in rows:
            signs[row // 4][column // 2] |= _DOTS[row % 4][column % 2]
    return ["".join(map(chr, line)).replace(chr(_BLANK), " ") for line in signs]


def _stars(levels: Sequence[int], width: int) -> list[str]:
    signs = [[" "] * width for _ in range(_HEIGHT)]
    for column, rows in enumerate(_joined(levels)):
        for row in rows:
            signs[row][column] = "*"
    return ["".join(line) for line in signs]
