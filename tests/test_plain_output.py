"""Control codes are for terminals, and colours for people who want them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from automodel_cli.app import app

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def help_pages(context: typer.Context, path: tuple[str, ...] = ()) -> Iterator[list[str]]:
    """The line that prints the page of each command and group."""
    yield [*path, "--help"]
    if isinstance(context.command, TyperGroup):
        for name, command in context.command.commands.items():
            yield from help_pages(typer.Context(command, info_name=name, parent=context), (*path, name))


FAST = [
    *help_pages(typer.Context(typer.main.get_command(app), info_name="amcli")),
    ["--version"],
    ["--show-completion"],
    ["prep", "--list"],
    ["prep", "shakespeare", "--max-tokens", "10K"],
    *(["config", "show", "--format", form] for form in ("yaml", "table", "json", "flat")),
    ["config", "show", "--check"],
    ["config", "show", "--explain", "model.n_layer"],
    ["config", "show", "--diff", "other.yaml"],
    ["config", "show", "--set", "model.n_head=5"],
    ["config", "init", "-"],
    ["config", "init", "new.yaml"],
    ["config", "schema"],
    ["inspect-ckpt"],
    ["inspect-ckpt", "--json"],
    ["pretrain", "--bogus"],
    ["pretrain", "-c", "nowhere.yaml"],
    ["resume"],
    ["sample"],
    ["confg"],
]


@pytest.fixture
def workplace(tmp_path) -> Path:
    (tmp_path / "other.yaml").write_text("seed: 1\n")
    return tmp_path


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    return {**kept, "TERM": "xterm-256color", **more}


@pytest.fixture
def read_terminal(workplace, terminal):
    """What amcli prints on a terminal."""

    def read(arguments: list[str], **more: str) -> str:
        screen = terminal()
        line = [sys.executable, "-m", "automodel_cli", *arguments]
        screen.run(line, cwd=workplace, env=environment(**more), stdin=subprocess.DEVNULL)
        return screen.close()

    return read


@pytest.mark.parametrize("arguments", FAST, ids=" ".join)
def test_a_pipe_gets_no_control_codes(workplace, arguments):
    """Neither colours nor cursor movements, on both streams."""
    line = [sys.executable, "-m", "automodel_cli", *arguments]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    printed = subprocess.run(line, cwd=workplace, env=environment(), check=False, **streams).stdout.decode()

    assert printed
    assert not [character for character in printed if not (character.isprintable() or character == "\n")]


@pytest.mark.parametrize(
    "arguments",
    [["config", "show"], ["config", "show", "--format", "table"], ["prep", "--list"], ["confg"]],
    ids=" ".join,
)
def test_no_color_is_honoured_on_a_terminal(read_terminal, arguments):
    """https://no-color.org: any value that is not empty."""
    shown = read_terminal(arguments, NO_COLOR="1")

    assert shown
    assert not COLOUR.search(shown)


def test_an_error_is_red_on_a_terminal(read_terminal):
    """Else the test above could not fail; an empty NO_COLOR asks for nothing."""
    assert COLOUR.search(read_terminal(["confg"]))
    assert COLOUR.search(read_terminal(["confg"], NO_COLOR=""))
