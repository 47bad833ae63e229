"""How `amcli config show --plot-lr` looks: the learning rate over the steps, drawn or as JSON.

Drawn with Braille where the output can show it: one character has 2 x 4 dots, so that 64 x 12 of them show 128 x 48.
Elsewhere with stars.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence

import typer

from automodel_cli.engine.optim.lr_schedule import Schedule

_MOST_POINTS = 1000
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # by row and column within a character
_BLANK = 0x2800
_HEIGHT = 12
_MAX_WIDTH = 96


def schedule(curve: Schedule, num_steps: int, tokens_per_step: int | None, *, as_json: bool) -> None:
    """Prints the curve of the updates 1 to `num_steps`.

    Args:
        curve: The schedule.
        num_steps: Steps of the run.
        tokens_per_step: For the label of the axis; None if not known.
        as_json: `lr` is then a list of [step, rate] pairs, at most 1,000 of them.
    """
    if as_json:
        document = {
            "style": curve.style,
            "max_steps": num_steps,
            "tokens_per_step": tokens_per_step,
            **curve.phases,
            "lr": [[step + 1, curve.lr(step)] for step in _some_steps(num_steps, _MOST_POINTS)],
        }
        typer.echo(json.dumps(document))
        return
    end = f"step {num_steps:,}"
    if tokens_per_step is not None:
        end += f" ({num_steps * tokens_per_step:,} tokens)"
    typer.echo(f"learning rate: {curve.summary()}")
    for line in _plot(curve.lr, num_steps, braille=_can_show_braille(), x_labels=("1", end)):
        typer.echo(line)


def _some_steps(num_steps: int, most: int) -> list[int]:
    """At most `most` of the steps 0 to num_steps - 1, evenly, with the first and the last.

    >>> _some_steps(10, 4), _some_steps(3, 9)
    ([0, 3, 6, 9], [0, 1, 2])
    """
    if num_steps <= most:
        return list(range(num_steps))
    return sorted({round(index * (num_steps - 1) / (most - 1)) for index in range(most)})


def _can_show_braille() -> bool:
    """Whether standard output takes characters beyond ASCII."""
    encoding = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "")
    return encoding.startswith("utf") and os.environ.get("TERM") != "dumb"


def _plot(value_at: Callable[[int], float], num_steps: int, *, braille: bool, x_labels: Sequence[str]) -> list[str]:
    """The lines of a plot of `value_at(step)` for the steps 0 to num_steps - 1, from zero up.

    Args:
        value_at: The curve; never negative.
        num_steps: At least 1.
        braille: Draw with Braille, else with stars.
        x_labels: Text below the axis, at its beginning and at its end.
    """
    width = max(16, min(_MAX_WIDTH, shutil.get_terminal_size((80, 24)).columns - 14))
    across, down = (2, 4) if braille else (1, 1)
    columns, rows = across * width, down * _HEIGHT
    values = [value_at(round(column * (num_steps - 1) / (columns - 1))) for column in range(columns)]
    top = max(values) or 1.0
    levels = [min(rows - 1, round((1.0 - value / top) * (rows - 1))) for value in values]
    cells = [[0] * width for _ in range(_HEIGHT)]
    for column, filled in enumerate(_joined(levels)):
        for row in filled:
            cells[row // down][column // across] |= _DOTS[row % down][column % across]
    lines = ["".join(" " if not cell else chr(_BLANK + cell) if braille else "*" for cell in line) for line in cells]
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
