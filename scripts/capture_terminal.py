"""Runs a command in a pseudo-terminal and draws what a person would see there as an SVG.

The command writes to a terminal in memory (pyte), so progress bars that redraw themselves end
up as their last state. Long runs of similar lines can be folded. The picture names no fonts or
other files on the network.

    python scripts/capture_terminal.py --output help.svg --title "amcli" -- amcli --help

`make picture` draws docs/images/quickstart.svg with it.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import io
import itertools
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

# Tall enough that nothing scrolls away; pyte stores only the cells that were written.
SCREEN_LINES = 20_000
# What the program is told: rich cuts its live displays to this height.
WINDOW_LINES = 40
READ_BYTES = 65_536

FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
SVG_FORMAT = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
    <style>
    .{unique_id}-matrix {{
        font-family: FONTS;
        font-size: {char_height}px;
        line-height: {line_height}px;
        font-variant-east-asian: full-width;
    }}
    .{unique_id}-title {{
        font-size: 18px;
        font-weight: bold;
        font-family: FONTS;
    }}
    {styles}
    </style>
    <defs>
    <clipPath id="{unique_id}-clip-terminal">
      <rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
    </clipPath>
    {lines}
    </defs>
    {chrome}
    <g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
    {backgrounds}
    <g class="{unique_id}-matrix" xml:space="preserve">
    {matrix}
    </g>
    </g>
</svg>
""".replace("FONTS", FONTS)


def run_in_terminal(command: list[str], num_columns: int) -> tuple[pyte.Screen, int]:
    """Runs `command` with a terminal of `num_columns` and returns the final screen and the exit code."""
    screen = pyte.Screen(num_columns, SCREEN_LINES)
    stream = pyte.ByteStream(screen)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", WINDOW_LINES, num_columns, 0, 0))
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "CI")},
        "TERM": "xterm-256color",
        "COLUMNS": str(num_columns),
    }
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, close_fds=True)
    os.close(theirs)
    while chunk := _read(ours):
        stream.feed(chunk)
    os.close(ours)
    return screen, process.wait()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, READ_BYTES)
    except OSError as error:
        # Linux reports the closed other end of a terminal as EIO, not as an end of file.
        if error.errno == errno.EIO:
            return b""
        raise


def lines_of(screen: pyte.Screen) -> list[Text]:
    """The lines of the screen up to the last one with text, with colours, without blanks at their ends."""
    last = max((row for row, cells in screen.buffer.items() if any(c.data.strip() for c in cells.values())), default=-1)
    return [_line(screen.buffer[row], screen.columns) for row in range(last + 1)]


def _line(cells: dict[int, pyte.screens.Char], num_columns: int) -> Text:
    line = Text()
    # One span per run of equal style: one per character would make the picture ten times as large.
    for style, run in itertools.groupby((cells[column] for column in range(num_columns)), key=_style):
        line.append("".join(cell.data for cell in run), style)
    line.rstrip()
    return line


def _style(cell: pyte.screens.Char) -> Style:
    return Style(
        color=_colour(cell.fg),
        bgcolor=_colour(cell.bg),
        bold=cell.bold,
        italic=cell.italics,
        underline=cell.underscore,
        reverse=cell.reverse,
    )


def _colour(name: str) -> str | None:
    if name == "default":
        return None
    if re.fullmatch("[0-9a-f]{6}", name):
        return f"#{name}"
    # pyte keeps the names of the first terminals: their dark yellow was called brown.
    return name.replace("brown", "yellow").replace("bright", "bright_").replace("bfight", "bright_")


def fold(lines: list[Text], pattern: str, keep: int) -> list[Text]:
    """Replaces the middle of every run of lines that match `pattern` by one line that counts them."""
    folded: list[Text] = []
    run: list[Text] = []
    for line in [*lines, None]:
        if line is not None and re.search(pattern, line.plain):
            run.append(line)
            continue
        hidden = run[keep:-keep]
        if len(hidden) > 1:
            run = [*run[:keep], Text(f"  ... {len(hidden)} more lines ...", style="dim"), *run[-keep:]]
        folded += run
        run = []
        if line is not None:
            folded.append(line)
    return folded


def draw(lines: list[Text], title: str, num_columns: int) -> str:
    """The lines as SVG text."""
    console = Console(record=True, width=num_columns, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for line in lines:
        console.print(line, no_wrap=True, overflow="crop", highlight=False)
    # The fixed id keeps a new picture of the same text equal to the old one.
    return console.export_svg(title=title, theme=DIMMED_MONOKAI, code_format=SVG_FORMAT, unique_id="terminal")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="the SVG to write")
    parser.add_argument("--title", default="", help="text in the window's title bar")
    parser.add_argument("--columns", type=int, default=100, help="width of the terminal")
    parser.add_argument("--fold", metavar="REGEX", help="fold long runs of lines that match")
    parser.add_argument("--fold-keep", type=int, default=3, help="lines kept at both ends of a folded run")
    parser.add_argument("--skip-until", metavar="REGEX", help="drop the lines before the first one that matches")
    parser.add_argument("command", nargs="+", help="the command, after --")
    options = parser.parse_args()

    screen, status = run_in_terminal(options.command, options.columns)
    lines = lines_of(screen)
    if options.skip_until:
        start = next((i for i, line in enumerate(lines) if re.search(options.skip_until, line.plain)), 0)
        lines = lines[start:]
    if options.fold:
        lines = fold(lines, options.fold, options.fold_keep)
    if status:
        sys.stderr.write("\n".join(line.plain for line in lines[-20:]) + f"\nthe command failed with status {status}\n")
        return status
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(draw(lines, options.title, options.columns), encoding="utf-8")
    sys.stdout.write(f"{options.output}: {len(lines)} lines\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
