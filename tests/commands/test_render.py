"""Who is asked before something is deleted, and what `--quiet` leaves."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from automodel_cli import app

OVERWRITE = ["prep", "shakespeare", "--max-tokens", "10K", "--output-dir", "mine", "--overwrite"]


def amcli(*arguments, cwd, **more):
    return subprocess.run([sys.executable, "-m", "automodel_cli", *arguments], cwd=cwd, check=False, **more)


@pytest.fixture
def on_a_terminal(terminal):
    """The exit code of a command whose questions are answered on a terminal."""

    def run(arguments, answer, cwd):
        screen = terminal()
        code = screen.run(
            [sys.executable, "-m", "automodel_cli", *arguments], answer, cwd=cwd, stdout=subprocess.DEVNULL
        )
        screen.close()
        return code

    return run


@pytest.fixture
def prepared(tmp_path):
    """Data in `mine`, and a file that only a new start would delete or renew."""
    amcli(*OVERWRITE, cwd=tmp_path, capture_output=True)
    return tmp_path


def made_at(directory):
    return (directory / "mine/manifest.json").stat().st_mtime_ns


def test_on_a_terminal_overwriting_is_asked_about(prepared, on_a_terminal):
    """`no` leaves everything as it is; `--yes` is the answer in advance."""
    before = made_at(prepared)

    assert on_a_terminal(OVERWRITE, "n\n", prepared) == 130
    assert made_at(prepared) == before
    assert on_a_terminal(OVERWRITE, "y\n", prepared) == 0
    assert made_at(prepared) > before
    again = made_at(prepared)
    assert on_a_terminal([*OVERWRITE, "--yes"], "", prepared) == 0
    assert made_at(prepared) > again


def test_a_script_is_not_asked(prepared):
    """Nobody could answer; `--overwrite` itself is what it says."""
    before = made_at(prepared)

    done = amcli(*OVERWRITE, cwd=prepared, stdin=subprocess.DEVNULL, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert made_at(prepared) > before


@pytest.fixture
def run(tiny_run, capsys):
    """Runs a command in this process, which has torch already, and returns what it printed."""

    def command(*arguments):
        assert app.run([*arguments]) == 0
        return capsys.readouterr()

    command("pretrain", "-c", str(tiny_run), "--quiet", "--set", "step_scheduler.max_steps=2")
    return command


def test_quiet_leaves_the_summary_alone(run, tiny_run):
    """No notes and no steps; the end of the run is still told."""
    begun = run("pretrain", "--quiet", "--overwrite", "--yes", "-c", str(tiny_run))
    resumed = run("resume", "--quiet", "--set", "step_scheduler.max_steps=8")

    assert (begun.err, begun.out.split()[:2]) == ("", ["steps", "6"])
    assert (resumed.err, resumed.out.split()[:2]) == ("", ["steps", "8"])


def test_a_finished_run_answers_in_json_too(run):
    """With the keys of any run: a script need not know that nothing was left to train."""
    first = json.loads(run("resume", "--json", "--set", "step_scheduler.max_steps=4").out)
    again = json.loads(run("resume", "--json").out)

    assert first.keys() == again.keys()
    assert (again["step"], again["loss"], again["val_loss"]) == (4, first["loss"], first["val_loss"])


def test_nothing_printed_into_a_pipe_ends_in_spaces(run):
    """Tables are padded on terminals only."""
    for arguments in (["inspect-ckpt"], ["inspect-ckpt", "checkpoints"]):
        printed = run(*arguments).out
        assert printed
        assert [line for line in printed.splitlines() if line != line.rstrip()] == []
