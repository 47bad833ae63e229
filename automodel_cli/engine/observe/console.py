"""The run as a person watches it: a line per step, and on a terminal a progress bar below them.

Where the output is not a terminal (a file, a pipe, a job's log) it is plain lines without a
single control code, each flushed, so that `tee` and `grep` see them at once.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.progress import Progress, Task, TaskID
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from automodel_cli.engine.config.emit import steady
from automodel_cli.engine.observe.metrics import StepStats, ValStats


class ConsoleSink:
    """Prints reports for people.

    Args:
        max_steps: The last step of the run.
        start_step: Steps done before this process began.
        stream: Where to print; the standard output if None.
    """

    name = "the console"
    num_gone = 0

    def __init__(self, max_steps: int, start_step: int = 0, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._bar = _Bar(self._stream, max_steps, start_step) if _is_live_terminal(self._stream) else None
        # The bar says what is left, and a line of a terminal with 100 columns is full without it.
        self._lines = LineFormat(max_steps, says_left=self._bar is None)

    def on_start(self, facts: dict[str, Any]) -> None:
        """Prints the facts that fit on a line each."""
        shown = {name: value for name, value in facts.items() if isinstance(value, str | int | float)}
        width = max(map(len, shown), default=0)
        room = self._room()
        for name, value in shown.items():
            line, indent = f"{name:<{width}}  {_readable(value)}", " " * (width + 2)
            lines = textwrap.wrap(line, room, subsequent_indent=indent, **_WORDS) if room else [line]
            self._print("\n".join(lines))

    def on_step(self, stats: StepStats) -> None:
        """Prints the step's line and moves the bar."""
        self._print(self._lines.step(stats, self._room()))
        if self._bar is not None:
            self._bar.move(stats)

    def on_validation(self, stats: ValStats) -> None:
        """Prints the validation's line."""
        self._print(self._lines.validation(stats, self._room()))

    def on_message(self, text: str) -> None:
        """Prints the text."""
        self._print(text)

    def close(self) -> None:
        """Takes the bar away; what was printed stays."""
        if self._bar is not None:
            self._bar.stop()

    def _room(self) -> int | None:
        """Columns of the terminal, which may change while a run goes on; None for a pipe or a file."""
        if self._bar is not None:
            return self._bar.width
        return os.get_terminal_size(self._stream.fileno()).columns if self._stream.isatty() else None

    def _print(self, line: str) -> None:
        line = steady(line)
        if self._bar is not None:
            self._bar.print_above(line)
        else:
            self._stream.write(line + "\n")
            self._stream.flush()


class LineFormat:
    """Lays out step lines so that their columns stay under each other.

    Each column is as wide as its widest value so far: a run whose loss starts below 10 spends
    no blank on it, and one that starts above settles at its first line.

    Args:
        max_steps: The last step of the run.
        says_left: Whether the time to it ends a line.
    """

    def __init__(self, max_steps: int, *, says_left: bool = True) -> None:
        self._says_left = says_left
        self._step_width = len(str(max_steps)) + 1
        self._max_steps = max_steps
        self._widths: dict[int, int] = {}

    def step(self, stats: StepStats, room: int | None = None) -> str:
        """`step 120/400 | loss 2.1234 | grad_norm 0.53 | lr 9.12e-04 | tps 45,123 | mem 0.51 GB | 182 ms | left 0:51`.

        On several devices the rate of one of them follows `tps`; `mfu` stands where it is known, and `data`, the
        share of the step that went by in waiting for data, from one per cent on. Numbers of the model and the loss
        follow the memory. Where there are only `room` columns, what matters least is left out.
        """
        ranked = [
            (1, f"loss {stats.loss:.4f}"),
            (5, f"grad_norm {stats.grad_norm:.2f}"),
            (3, f"lr {stats.lr:.2e}"),
            (2, f"tps {_rate(stats)}"),
            *([(6, f"mfu {stats.mfu:.1%}")] if stats.mfu is not None else []),
            (7, f"mem {stats.memory_bytes / 1e9:.2f} GB"),
            *((10, f"{number.name} {number.value:.4g} {number.unit}".rstrip()) for number in stats.reported),
        ]
        ranked = [(rank, self._aligned(column, text)) for column, (rank, text) in enumerate(ranked)]
        ranked.append((8, _time(stats)))
        if stats.data_wait_share >= 0.01:
            ranked.append((9, f"data {stats.data_wait_share:.0%}"))
        if self._says_left and stats.step < stats.max_steps:
            ranked.append((4, f"left {_clock(stats.seconds_left)}"))
        return _fitted([(0, self._counter(stats.step)), *ranked], " | ", room)

    def validation(self, stats: ValStats, room: int | None = None) -> str:
        """`step 120/400 | val_loss 2.0312 | perplexity 7.62 | bits/byte 1.7200`, then the loss of each named set."""
        ranked = [(1, f"val_loss {stats.val_loss:.4f}"), (2, f"perplexity {stats.val_perplexity:,.2f}")]
        if stats.val_bits_per_byte is not None:
            ranked.append((3, f"bits/byte {stats.val_bits_per_byte:.4f}"))
        ranked += [
            (4 + place, f"{name} {found.val_loss:.4f}") for place, (name, found) in enumerate(stats.sets.items())
        ]
        return _fitted([(0, self._counter(stats.step)), *ranked], " | ", room)

    def _counter(self, step: int) -> str:
        return f"step {step:>{self._step_width}}/{self._max_steps}"

    def _aligned(self, column: int, text: str) -> str:
        width = self._widths[column] = max(len(text), self._widths.get(column, 0))
        return text.ljust(width)


class FittedProgress(Progress):
    """A line of progress that is never broken: of the facts those that there is room for, and a bar in what is left.

    A task has the fields `before`, the text in front of the bar, and `facts`, the texts behind it, which are left out
    from the last one on.
    """

    def get_renderables(self) -> Iterator[Table | Text]:
        """A line for each task."""
        return (self._line(task) for task in self.tasks if task.visible)

    def _line(self, task: Task) -> Table | Text:
        before, facts, width = str(task.fields["before"]), list(task.fields["facts"]), self.console.width
        text = _fitted(list(enumerate([before, *facts])), "  ", width)
        room = min(_BAR_COLUMNS, width - len(text) - 2)
        if room < _LEAST_BAR_COLUMNS:
            return Text(text, no_wrap=True, overflow="crop")
        line = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
        bar = ProgressBar(task.total, task.completed, room, pulse=task.total is None, animation_time=task.get_time())
        line.add_row(Text(before, no_wrap=True), bar, Text(text[len(before) + 2 :], no_wrap=True))
        return line


def _fitted(ranked: Sequence[tuple[int, str]], between: str, room: int | None) -> str:
    """The texts in their order, without those of the highest ranks where there is no room for all.

    >>> _fitted([(0, "step 1"), (2, "12 ms"), (1, "loss 2.0")], " | ", 18)
    'step 1 | loss 2.0'
    """
    kept = list(ranked)
    while room is not None and len(kept) > 1 and len(between.join(text for _, text in kept)) > room:
        kept.remove(max(kept))
    return between.join(text for _, text in kept)


_BAR_COLUMNS, _LEAST_BAR_COLUMNS = 40, 6
_WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}


class _Bar:
    """A progress bar on the last line of a terminal, with lines scrolling above it."""

    def __init__(self, stream: TextIO, max_steps: int, start_step: int) -> None:
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._progress = FittedProgress(console=self._console, transient=True)
        self._max_steps = max_steps
        self._start_step = start_step
        self._task: TaskID | None = None

    @property
    def width(self) -> int:
        return self._console.width

    def move(self, stats: StepStats) -> None:
        facts = [
            f"{_clock(stats.seconds_left)} left",
            f"loss {stats.loss:.4f}",
            f"{stats.tokens_per_second:,.0f} tok/s",
        ]
        fields: dict[str, Any] = {"before": f"step {stats.step:,}/{self._max_steps:,}", "facts": facts}
        if self._task is None:
            # The bar starts with the first step: what happens before has nothing to show.
            self._task = self._progress.add_task("", total=self._max_steps, completed=self._start_step, **fields)
            self._progress.start()
        self._progress.update(self._task, completed=stats.step, **fields)

    def print_above(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)

    def stop(self) -> None:
        if self._task is not None:
            self._progress.stop()


def _rate(stats: StepStats) -> str:
    """Tokens per second; on several devices, those of one in brackets."""
    rate, of_one = stats.tokens_per_second, stats.tokens_per_second_per_device
    return f"{rate:,.0f}" if not 0 < of_one < 0.99 * rate else f"{rate:,.0f} ({of_one:,.0f} each)"


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> _clock(51.4), _clock(3723), _clock(400000)
    ('0:51', '1:02:03', '4 d 15:06:40')
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def _time(stats: StepStats) -> str:
    milliseconds = stats.step_seconds * 1000
    return f"{milliseconds:.1f} ms" if milliseconds < 10 else f"{milliseconds:,.0f} ms"


def _readable(value: str | int | float) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _is_live_terminal(stream: TextIO) -> bool:
    # rich would also follow FORCE_COLOR, which continuous integration sets on logs.
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")
