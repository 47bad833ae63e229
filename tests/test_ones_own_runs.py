"""A run of the user's own code goes on without a question; a checkpoint from elsewhere, or changed code, asks."""

from __future__ import annotations

import shutil

import pytest

from automodel_cli.app import run

MODEL = """
from automodel_cli.engine.models.gpt2 import build_gpt2_model

def build(**sizes):
    return build_gpt2_model(**sizes)
"""


@pytest.fixture
def amcli(capsys):
    """Runs a command line; returns the exit code and what was said on standard error."""

    def call(*arguments):
        code = run(list(arguments))
        return code, capsys.readouterr().err

    return call


@pytest.fixture
def own_run(tiny_run, tmp_path, amcli, monkeypatch):
    """A run that was started with -c, whose model is a file of the user's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "mine.py").write_text(MODEL)
    text = tiny_run.read_text().replace("automodel_cli.engine.models.gpt2.build_gpt2_model", "mine.py:build")
    tiny_run.write_text(text)
    assert amcli("pretrain", "-c", str(tiny_run), "--quiet", "--set", "step_scheduler.max_steps=2")[0] == 0
    return tmp_path / "checkpoints"


def test_ones_own_run_needs_no_flag_and_what_changed_asks(own_run, tmp_path, amcli):
    """Resumed, sampled and checked without consent, until the file changes; -c consents anew."""
    longer = ("--quiet", "--set", "step_scheduler.max_steps=%d")

    def resume(steps, *more):
        return amcli("resume", str(own_run), longer[0], longer[1], longer[2] % steps, *more)

    assert resume(4)[0] == 0
    assert amcli("sample", str(own_run), "--max-new-tokens", "2")[0] == 0
    assert amcli("sample", str(own_run / "step_000002"), "--max-new-tokens", "2")[0] == 0

    shutil.copytree(own_run, tmp_path / "copy", symlinks=True)
    (tmp_path / "mine.py").write_text(MODEL + "# changed\n")
    (elsewhere, of_copy), (changed, of_change) = amcli("sample", str(tmp_path / "copy")), resume(6)

    assert (elsewhere, changed) == (2, 2)
    for said in (of_copy, of_change):
        assert f"{tmp_path / 'mine.py'}, SHA-256 " in said
        assert "--trust-config" in said
    assert "it changed since this run was started here" in of_change
    assert resume(6, "-c", str(tmp_path / "tiny.yaml"))[0] == 0
    assert resume(8)[0] == 0


def test_a_state_directory_that_cannot_be_written_fails_no_run(tiny_run, tmp_path, amcli, monkeypatch):
    """One note says that resuming will ask."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    (tmp_path / "mine.py").write_text(MODEL)
    text = tiny_run.read_text().replace("automodel_cli.engine.models.gpt2.build_gpt2_model", "mine.py:build")
    tiny_run.write_text(text)

    code, said = amcli("pretrain", "-c", str(tiny_run), "--json", "--set", "step_scheduler.max_steps=1")

    assert code == 0
    assert said.count("is not remembered") == 1


def test_an_ordinary_run_leaves_no_state(tiny_run, tmp_path, amcli, monkeypatch):
    """What amcli builds by itself needs no consent later."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    assert amcli("pretrain", "-c", str(tiny_run), "--quiet", "--set", "step_scheduler.max_steps=1")[0] == 0
    assert not (tmp_path / "state").exists()


def test_code_that_ends_the_process_is_a_failure(tiny_run, tmp_path, amcli):
    """`sys.exit(0)` in the middle of a run is exit code 1, with the place."""
    forward = (
        MODEL.replace("    return build", "    import sys\n    def leave(*_): sys.exit(0)\n    model = build")
        + "    model.register_forward_pre_hook(leave)\n    return model\n"
    )
    (tmp_path / "mine.py").write_text(forward)
    text = tiny_run.read_text().replace("automodel_cli.engine.models.gpt2.build_gpt2_model", "mine.py:build")
    tiny_run.write_text(text)

    code, said = amcli("pretrain", "-c", str(tiny_run), "--quiet")

    assert code == 1
    assert "ended the program with sys.exit(0)" in said
    assert "mine.py" in said
