"""`amcli verify-resume`: kills that are real, and a comparison that can fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from automodel_cli import app
from automodel_cli.engine.train.verify_resume import Kill, Verification

FORGETFUL = """
from automodel_cli.engine.loss.masked_ce import MaskedCrossEntropy

class Forgetful(MaskedCrossEntropy):
    '''Scales the loss by how long this process has been running: a state that no checkpoint holds.'''
    calls = 0

    def __call__(self, *args, **kwargs):
        Forgetful.calls += 1
        return super().__call__(*args, **kwargs) * (1 + Forgetful.calls / 100)
"""


def test_a_killed_run_is_equal(tiny_run, capsys):
    """Real kills, the same hashes; both runs are removed when nothing is wrong."""
    arguments = ["verify-resume", "-c", str(tiny_run), "--steps", "40", "--every", "6", "--kills", "2", "--json"]

    code = app.run(arguments)

    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert found["is_equal"]
    assert found["kills"]
    assert all(kill["resumed_from"] % 6 == 0 for kill in found["kills"])
    assert any(name.startswith("optim/") for name in found["hashes"])
    assert not Path("verify-resume").exists()


@pytest.mark.slow
def test_a_killed_run_of_two_ranks_is_equal(tiny_run, capsys):
    """The launcher and its ranks are killed together; every rank's part is compared."""
    arguments = ["verify-resume", "-c", str(tiny_run), "--nproc-per-node", "2", "--steps", "8", "--every", "2"]

    code = app.run([*arguments, "--kills", "1", "--json"])

    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert found["is_equal"]
    assert "state/rng_rank1.safetensors" in found["hashes"]


def test_what_a_checkpoint_does_not_hold_is_noticed(tiny_run, capsys):
    """A loss with a memory of its own makes the runs differ: exit code 4, and both runs stay."""
    (tiny_run.parent / "forgetful.py").write_text(FORGETFUL)
    tiny_run.write_text(tiny_run.read_text() + "loss_fn: {_target_: 'forgetful.py:Forgetful'}\n")

    code = app.run(["verify-resume", "-c", str(tiny_run), "--steps", "40", "--every", "6", "--kills", "1"])

    said = capsys.readouterr().out
    assert code == 4
    assert "DIFFERENT: 40 steps, 1 kills" in said
    assert (Path("verify-resume") / "straight").is_dir()


def test_a_configuration_that_fails_by_itself_is_told(tiny_run, capsys):
    """The reason of the run, not a comparison."""
    code = app.run(["verify-resume", "-c", str(tiny_run), "--set", "optimizer.lr=1e30", "--steps", "30"])

    assert code == 4
    assert "a run ended by itself with exit code 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("hashes", "steps", "state", "equal"),
    [
        ({"a": ("1", "1")}, (), (), True),
        ({"a": ("1", "2")}, (), (), False),
        ({"a": ("1", "1")}, (3,), (), False),
        ({"a": ("1", "1")}, (), ("tokens_seen",), False),
    ],
)
def test_any_difference_is_a_difference(hashes, steps, state, equal):
    """Hashes, reports and the training state count alike."""
    assert Verification(9, 0, (Kill(7, 5),), hashes, steps, state).is_equal is equal


@pytest.mark.parametrize(("directory", "words"), [("file/x", "Not a directory"), ("file", "it exists already")])
def test_a_place_that_cannot_be_written_to_is_said_before_training(tiny_run, capsys, directory, words):
    """Exit code 4, with what the system said."""
    Path("file").touch()

    assert app.run(["verify-resume", "-c", str(tiny_run), "--directory", directory]) == 4

    assert f"{directory}: " in (error := capsys.readouterr().err)
    assert words in error
