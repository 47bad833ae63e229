"""`checkpoint.restore_from`: a run goes on from a checkpoint, under its own configuration, in its own directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from automodel_cli import app


def hashes(root: str, step: int) -> dict[str, str]:
    files = json.loads((Path(root) / f"step_{step:06d}/manifest.json").read_text())["files"]
    return {name: record["sha256"] for name, record in files.items() if name.endswith(".safetensors")}


def steps_of(root: str) -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in sorted(Path(root).glob("step_*"))]


@pytest.fixture
def begun(tiny_run):
    """The command line of a run that is complete, to which a test adds."""
    command = ["pretrain", "-c", str(tiny_run)]
    assert app.run(command) == 0
    return command


def test_another_directory_continues_a_checkpoint_to_the_same_bits(begun, capsys):
    """Steps 3 to 6 anew elsewhere, from step 2: weights, optimizer and generators of the run that was never cut."""
    fork = [*begun, *_restored("checkpoints/step_000002", "fork")]

    assert app.run(fork) == 0

    said = capsys.readouterr().out
    assert "resuming after step 2" in said
    assert "changed  checkpoint.checkpoint_dir: checkpoints -> fork" in said
    assert "restore_from" not in said
    assert steps_of("fork") == [4, 6]
    assert hashes("fork", 6) == hashes("checkpoints", 6)
    assert app.run([*fork, "--resume", "auto"]) == 0
    assert "nothing to train" in capsys.readouterr().out


def test_a_run_that_went_on_elsewhere_is_another_one(begun):
    """Services that collect metrics know a run by its id: the continued copy gets its own, a moved run keeps it."""
    elsewhere = [*begun, "--set", "step_scheduler.max_steps=8"]

    assert app.run([*elsewhere, *_restored("checkpoints/step_000002", "copy")]) == 0
    assert app.run([*elsewhere, *_restored("checkpoints/step_000006", "moved")]) == 0

    old, copy, moved = (_run_id(root, step) for root, step in (("checkpoints", 6), ("copy", 8), ("moved", 8)))
    assert copy != old
    assert moved == old


def _restored(which: str, root: str) -> list[str]:
    return ["--set", f"checkpoint.restore_from={which}", "--set", f"checkpoint.checkpoint_dir={root}"]


def _run_id(root: str, step: int) -> str:
    return json.loads((Path(root) / f"step_{step:06d}/state/train_state.json").read_text())["run_id"]


def test_latest_begins_a_run_and_continues_it(tiny_run, capsys):
    """One configuration for the first start and for each one after it, as in the guides that have this key."""
    command = ["pretrain", "-c", str(tiny_run), "--set", "checkpoint.restore_from=LATEST"]

    assert app.run(command) == 0
    assert "holds no checkpoint: a new run" in capsys.readouterr().out
    assert app.run([*command, "--set", "step_scheduler.max_steps=8"]) == 0

    said = capsys.readouterr().out
    assert "resuming after step 6" in said
    assert steps_of("checkpoints") == [2, 4, 6, 8]


@pytest.mark.parametrize("which", ["2", "step_000002", "BEST"])
def test_a_step_of_this_run_is_refused_where_the_run_went_on(begun, capsys, which):
    """As `amcli resume 2` is: what came after it would be overwritten. A number is a step, a name one of its own."""
    if which == "BEST":
        (Path("checkpoints") / which).unlink()
        (Path("checkpoints") / which).symlink_to("step_000002")

    assert app.run([*begun, "--set", f"checkpoint.restore_from={which}"]) == 4

    assert "the run went on after step 2, up to step_000006" in capsys.readouterr().err
    assert steps_of("checkpoints") == [2, 4, 6]


def test_a_step_that_is_named_is_the_one_that_is_resumed(begun, capsys):
    """`amcli resume 2` never stands for the newest checkpoint."""
    assert app.run(["resume", "2", "--set", "checkpoint.checkpoint_dir=fork"]) == 0

    assert "resuming after step 2" in capsys.readouterr().out
    assert steps_of("fork") == [4, 6]


def test_two_runs_do_not_mix_in_one_directory(begun, capsys):
    """Checkpoints of another run in checkpoint_dir, even earlier ones, are not built upon."""
    assert app.run([*begun, "--set", "checkpoint.checkpoint_dir=other", "--set", "step_scheduler.max_steps=2"]) == 0

    assert app.run([*begun, *_restored("checkpoints/step_000004", "other")]) == 4

    assert "there is a run here already, up to step_000002" in capsys.readouterr().err


def test_the_rules_are_those_of_resume(begun, capsys):
    """Another seed is refused with both values, and taken with consent."""
    fork = [*begun, *_restored("checkpoints/step_000004", "fork"), "--set", "seed=8"]

    assert app.run(fork) == 4
    assert "--override-resume seed" in capsys.readouterr().err
    assert app.run([*fork, "--override-resume", "seed"]) == 0


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--set", "checkpoint.restore_from=LATEST", "--overwrite"], 2, "--overwrite deletes one"),
        (["--override-resume", "seed"], 2, "checkpoint.restore_from"),
        (["--set", "checkpoint.restore_from=nowhere"], 4, "there is no such directory"),
        (["--set", "checkpoint.restore_from=7", "--set", "checkpoint.init_from=."], 2, "leave one of them out"),
    ],
)
def test_what_cannot_be_meant_is_refused(tiny_run, capsys, options, code, words):
    assert app.run(["pretrain", "-c", str(tiny_run), *options]) == code

    assert words in capsys.readouterr().err
    assert not Path("checkpoints").exists()
