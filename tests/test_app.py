"""The boundary: every failure is one message and one exit code, and a traceback only on request."""

from __future__ import annotations

import pytest

from automodel_cli import __version__, app
from automodel_cli.errors import (
    AmcliError,
    CheckpointError,
    ConfigError,
    DataError,
    InterruptedTrainingError,
    TrainingDivergedError,
    UsageError,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError, 2),
        (ConfigError, 2),
        (DataError, 3),
        (CheckpointError, 4),
        (TrainingDivergedError, 5),
        (InterruptedTrainingError, 6),
        (ValueError, 1),
        (KeyboardInterrupt, 130),
    ],
)
def test_each_kind_of_error_has_its_exit_code(monkeypatch, capsys, error, code):
    """The documented codes, without a traceback; a stop that was asked for is no error."""

    def fail(**_):
        raise error("what went wrong")

    monkeypatch.setattr(app, "app", fail)

    assert app.run(["anything"]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert ("error: " in printed.err) is (code not in (6, 130))
    assert "Traceback" not in printed.err


def test_a_message_has_place_and_help():
    """Where, what, and what would work, in that order."""
    error = AmcliError("it is 7", where="a.yaml:3:1", help="8 would work")

    assert str(error) == "a.yaml:3:1: it is 7\n  help: 8 would work"


def test_a_message_that_lists_others_shows_each_with_its_excerpt_and_help():
    """The excerpt stands between what is wrong and what would work."""
    inner = AmcliError("it is 7", where="a.yaml:3:1", help="8 would work", excerpt="    3 | 7\n      | ^")

    shown = str(AmcliError("1 problem", problems=[inner]))

    assert shown == "1 problem\na.yaml:3:1: it is 7\n    3 | 7\n      | ^\n  help: 8 would work"


@pytest.mark.parametrize("how", ["option", "variable"])
def test_a_traceback_is_shown_on_request(monkeypatch, capsys, how):
    """By `--traceback` anywhere on the line, or by AMCLI_TRACEBACK=1."""
    argv = ["config", "show", "-c", "no-such-file.yaml"]
    if how == "option":
        argv.append("--traceback")
    else:
        monkeypatch.setenv("AMCLI_TRACEBACK", "1")

    assert app.run(argv) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["pretrian"], "did you mean `amcli pretrain`?"),
        (["config", "shwo"], "did you mean `amcli config show`?"),
        (["pretrain", "--overwrit"], "did you mean --overwrite?"),
        (["pretrain", "cfg.yaml"], "takes no argument `cfg.yaml`"),
        (["pretrain", "--model.n_layer"], "`--model.n_layer` needs a value"),
        (["config", "show", "--set", "model.n_layer"], "--set takes KEY=VALUE"),
        (["sample", "--temperature", "hot"], "--temperature"),
        (["prep", "--bogus"], "--bogus"),
        ([], "Usage: amcli"),
    ],
)
def test_a_wrong_command_line_says_what_is_near(capsys, argv, words):
    """Exit code 2, the nearest right word, and nothing on standard output."""
    assert app.run(argv) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.out == ""


def test_the_version_is_printed(capsys):
    """`amcli --version` names itself and the version."""
    assert app.run(["--version"]) == 0
    assert capsys.readouterr().out == f"amcli {__version__}\n"


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["prep"],
        ["pretrain"],
        ["resume"],
        ["inspect-ckpt"],
        ["config"],
        ["config", "show"],
        ["config", "init"],
        ["config", "schema"],
        ["sample"],
    ],
)
def test_each_help_page_ends_with_examples(capsys, command):
    """A person finds a line to copy on every page."""
    assert app.run([*command, "--help"]) == 0
    assert "  amcli " in capsys.readouterr().out


def test_an_unexpected_error_says_where_and_how_to_see_more(monkeypatch, capsys):
    """The user's own exception is shown by type, message, place and note."""

    def fail(**_):
        error = ZeroDivisionError("by zero")
        error.add_note("while building `model` from a.yaml:3:12")
        raise error

    monkeypatch.setattr(app, "app", fail)

    assert app.run([]) == 1
    shown = capsys.readouterr().err
    assert "ZeroDivisionError: by zero" in shown
    assert "test_app.py" in shown
    assert "a.yaml:3:12" in shown
    assert "--traceback" in shown
