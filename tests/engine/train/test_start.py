"""The table of `start.py`: which run starts, for what was asked and what is in the directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from automodel_cli import app
from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.load import load_config
from automodel_cli.engine.train.start import NewRun, Start, start_of
from automodel_cli.errors import UsageError


def start(path: Path, *overrides: str, **asked: object) -> tuple[Start, list[str]]:
    """How `pretrain` would start, and what it would print about that."""
    config = load_config([path], overrides)
    said: list[str] = []
    return start_of(config, checked(config), [path], overrides, **asked, say=said.append), said


@pytest.fixture
def run_at_4(tiny_run):
    """A configuration whose run has checkpoints of the steps 2 and 4."""
    assert app.run(["pretrain", "--quiet", "-c", str(tiny_run), "--set", "step_scheduler.max_steps=4"]) == 0
    return tiny_run


def test_without_checkpoints_every_request_starts_a_new_run(tiny_run):
    """`--resume auto`, `--overwrite` and restore_from=LATEST have nothing to continue or delete."""
    restored, said = start(tiny_run, "checkpoint.restore_from=LATEST")
    others = [start(tiny_run, **asked)[0] for asked in ({}, {"continues": True}, {"overwrite": True})]

    assert all(isinstance(each, NewRun) and not each.deletes for each in (restored, *others))
    assert said == ["checkpoint.restore_from is LATEST, and checkpoints holds no checkpoint: a new run"]


def test_checkpoints_are_continued_restored_or_deleted_as_asked(run_at_4):
    """`continues` wins over restore_from, and only `overwrite` deletes."""
    continued = start(run_at_4, "checkpoint.restore_from=step_000002", continues=True)[0]
    restored = start(run_at_4, "checkpoint.restore_from=step_000002")[0]
    overwritten = start(run_at_4, overwrite=True)[0]

    assert continued.directory.name == "step_000004"
    assert restored.directory.name == "step_000002"
    assert overwritten.deletes
    assert not start(run_at_4)[0].deletes


@pytest.mark.parametrize(
    ("overrides", "asked", "words"),
    [
        (["checkpoint.restore_from=LATEST"], {"overwrite": True}, "--overwrite deletes one"),
        ([], {"consented": ["seed"]}, "checkpoint.restore_from continues, and that is not set"),
    ],
)
def test_options_that_contradict_the_configuration_are_refused(tiny_run, overrides, asked, words):
    """A run cannot be both deleted and continued, and consent needs a run that continues."""
    with pytest.raises(UsageError, match=words):
        start(tiny_run, *overrides, **asked)
