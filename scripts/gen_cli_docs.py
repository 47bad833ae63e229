"""Writes docs/cli.md: the help page of every command, as `amcli ... --help` prints it.

python scripts/gen_cli_docs.py            write the page
python scripts/gen_cli_docs.py --check    exit 1 if the page is not what the commands say now
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from automodel_cli.app import app, run

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
INTRODUCTION = """\
# Commands

The help page of every command. This file is written by `make docs`; edit the command's docstring instead.
"""


def command_paths(group: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yields the words that name each command below `group`, the group itself first."""
    yield prefix
    for name, command in getattr(group, "commands", {}).items():
        yield from command_paths(command, (*prefix, name))


def help_of(path: tuple[str, ...]) -> str:
    """What `amcli PATH --help` prints in a terminal of 100 columns."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = run([*path, "--help"])
    if status:
        raise SystemExit(f"amcli {' '.join(path)} --help failed with status {status}")
    return "\n".join(line.rstrip() for line in printed.getvalue().strip("\n").splitlines())


def page() -> str:
    """The whole page."""
    os.environ.update(COLUMNS="100", TERM="dumb", NO_COLOR="1")
    sections = [INTRODUCTION]
    for path in command_paths(typer.main.get_command(app)):
        sections.append(f"## `{' '.join(('amcli', *path))}`\n\n```text\n{help_of(path)}\n```\n")
    return "\n".join(sections)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is out of date")
    options = parser.parse_args()

    current = page()
    if not options.check:
        PAGE.write_text(current, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == current:
        return 0
    sys.stderr.write("docs/cli.md is not what the commands say now\n  help: `make docs` writes it anew\n")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
