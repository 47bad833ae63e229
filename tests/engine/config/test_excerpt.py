"""What an error is about is shown as it stands in the file or on the command line, with a caret below the place."""

from __future__ import annotations

import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automodel_cli import app
from automodel_cli.engine.config.excerpt import add_excerpts, file_excerpt, option_excerpt
from automodel_cli.engine.config.origin import Origin
from automodel_cli.errors import ConfigError


def caret_column(excerpt: str) -> int:
    """The column of the text, from 0 and in cells of a terminal, below which the first caret stands."""
    return excerpt.splitlines()[1].index("^") - len("      | ")


def test_the_caret_stands_below_the_column(tmp_path):
    """Line and column of an origin, with the number of the line beside it."""
    path = tmp_path / "a.yaml"
    path.write_text("seed: 1\nmodel:\n  n_layer: many\n")

    shown = file_excerpt(Origin("file", str(path), line=3, column=12))

    assert shown == "    3 |   n_layer: many\n      |            ^"


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=400), st.integers(20, 200), st.data())
def test_an_excerpt_is_two_lines_that_fit_and_have_no_control_codes(tmp_path_factory, text, columns, data):
    """For any line of a file, any column in it and any width of the terminal."""
    line = "".join(character for character in text if character not in "\r\n\x85\u2028\u2029\ufeff")
    path = tmp_path_factory.mktemp("excerpt") / "a.yaml"
    path.write_text(line, encoding="utf-8", newline="")
    column = data.draw(st.integers(1, len(line) + 1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        shown = file_excerpt(Origin("file", str(path), line=1, column=column))

    first, second = shown.split("\n")
    assert not any(unicodedata.category(character) == "Cc" for character in first + second)
    assert second.count("^") in (1, 2)
    assert len(first) <= max(columns, 29)


@given(st.text(st.sampled_from("abc語ä\u0301\t"), max_size=60))
def test_wide_characters_and_tabs_do_not_move_the_caret(tmp_path_factory, before):
    """The caret is as many cells from the left as what stands before the place."""
    path = tmp_path_factory.mktemp("excerpt") / "a.yaml"
    path.write_text(before + "X", encoding="utf-8")
    cells = sum(0 if c == "\u0301" else 2 if c == "語" else 1 for c in before)

    shown = file_excerpt(Origin("file", str(path), line=1, column=len(before) + 1))

    assert caret_column(shown) == cells


def test_a_place_far_to_the_right_is_still_shown(tmp_path, monkeypatch):
    """A line of ten thousand characters is cut around the place."""
    monkeypatch.setenv("COLUMNS", "60")
    path = tmp_path / "a.yaml"
    path.write_text("x" * 9000 + "HERE" + "y" * 1000)

    first, second = file_excerpt(Origin("file", str(path), line=1, column=9001)).split("\n")

    assert first[second.index("^") :].startswith("HERE")
    assert len(first) <= 60


def test_no_excerpt_is_made_where_there_is_nothing_to_show(tmp_path):
    """A file that is gone, a directory, a pipe that nobody writes to, a line beyond the end, an origin without line."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    short = tmp_path / "short.yaml"
    short.write_text("a: 1\n")
    places = [
        Origin("file", str(tmp_path / "gone.yaml"), 1, 1),
        Origin("file", str(tmp_path), 1, 1),
        Origin("file", str(pipe), 1, 1),
        Origin("file", str(short), 7, 1),
        Origin("file", str(short), 1, 7),
        Origin("option", "--set a"),
    ]

    assert [file_excerpt(place) for place in places] == [None] * len(places)


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        (["--set", "seed=x"], "--set seed=x"),
        (["--set=seed=x"], "--set=seed=x"),
        (["--seed", "x"], "--seed x"),
        (["--seed=x"], "--seed=x"),
        (["--set", "seed=1", "--set", "seed=x"], "--set seed=x"),
        (["--set", "seeds=1"], None),
        (["--set"], None),
    ],
)
def test_an_option_is_shown_as_it_was_typed(typed, shown):
    """In each of its forms; the last one, since that one counts."""
    excerpt = option_excerpt("seed", ["config", "show", *typed])

    assert (excerpt and excerpt.splitlines()[0].strip(" |")) == shown


def test_each_of_several_problems_has_its_own_excerpt(tmp_path):
    """An error that lists others passes the command line on to them."""
    path = tmp_path / "a.yaml"
    path.write_text("seed: -1\n")
    error = ConfigError(
        "2 problems",
        problems=[ConfigError("one", where=f"{path}:1:7", help="help one"), ConfigError("two", where="--set a.b")],
    )

    add_excerpts(error, ["--set", "a.b=3"])

    assert str(error).splitlines() == [
        "2 problems",
        f"{path}:1:7: one",
        "    1 | seed: -1",
        "      |       ^",
        "  help: help one",
        "--set a.b: two",
        "      | --set a.b=3",
        "      |       ^^^^^",
    ]


def test_the_command_line_shows_excerpts_between_message_and_help(tmp_path, capsys):
    """Once at the boundary, for several mistakes in a file and for a single one in an option."""
    path = tmp_path / "a.yaml"
    path.write_text("step_scheduler:\n  max_step: 4\n")

    assert app.run(["config", "show", "-c", str(path)]) == 2
    several = capsys.readouterr().err
    assert app.run(["config", "show", "--set", "step_scheduler.max_steps=many"]) == 2
    single = capsys.readouterr().err

    assert "max_step`\n    2 |   max_step: 4\n      |   ^\n  help: did you mean `max_steps`?" in several
    assert "whole number\n      | --set step_scheduler.max_steps=many\n      |       ^" in single
    assert "^\n  help: optimisation steps" in single


def test_invalid_yaml_is_shown_where_it_breaks(tmp_path, capsys):
    """Also errors that stop the reading have their line."""
    path = tmp_path / "a.yaml"
    path.write_text("model:\n  a: [1,\n  b: }\n")

    assert app.run(["config", "show", "-c", str(path)]) == 2

    assert "    3 |   b: }\n      |      ^" in capsys.readouterr().err
