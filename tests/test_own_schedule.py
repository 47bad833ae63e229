"""A learning-rate schedule in a user's file (`lr_scheduler._target_`) trains, is shown, and resumes exactly."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from automodel_cli.app import run
from automodel_cli.engine.config.keys import known_keys
from automodel_cli.engine.config.load import load_config
from automodel_cli.engine.config.schema import json_schema

SCHEDULE = '''
def cooldown(step, max_steps, cool=2):
    """Constant, then linear to zero.

    Args:
        cool: Updates of the way down.
    """
    return min(1.0, (max_steps - step) / cool)

def ends(step, max_steps):
    return cooldown(step, max_steps) if step < max_steps else None

def returns(step, value, at=3):
    return value if step == at else 1.0

def fails(step):
    return 1 / (3 - step) ** 2
'''


@pytest.fixture
def own(tiny_run, tmp_path, monkeypatch, capsys):
    """Writes a configuration with this `lr_scheduler`; runs a command with it; returns exit code, output and errors."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    Path("mine.py").write_text(SCHEDULE)
    values = yaml.safe_load(tiny_run.read_text())

    def call(section, command, *arguments):
        text = yaml.safe_dump({**values, "lr_scheduler": section})
        Path("own.yaml").write_text(text)
        code = run([*command.split(), "-c", "own.yaml", *arguments])
        return code, *capsys.readouterr()

    return call


def weights():
    return hashlib.sha256(Path("checkpoints/LATEST/model/model.safetensors").read_bytes()).hexdigest()


def rates(text):
    return [rate for _, rate in json.loads(text)["lr"]]


def test_a_function_of_the_user_trains_is_shown_and_resumes_exactly(own, capsys):
    """The rates are multiples of optimizer.lr; a run cut in two has the weights of the whole one."""
    section = {"_target_": "mine.py:cooldown", "cool": 4}

    code, shown, _ = own(section, "config show", "--plot-lr", "--json", "--set", "optimizer.lr=0.01")
    assert (code, rates(shown)) == (0, [0.01, 0.01, 0.01, 0.01 * 0.75, 0.01 * 0.5, 0.01 * 0.25])
    assert own(section, "pretrain", "--quiet")[0] == 0
    expected = weights()
    assert own({**section, "max_steps": 6}, "pretrain", "--overwrite", "--set", "step_scheduler.max_steps=3")[0] == 0
    code = run(["resume", "checkpoints", "--set", "step_scheduler.max_steps=6"])

    assert (code, weights()) == (0, expected)
    assert "the learning rate from step" not in "".join(capsys.readouterr())
    assert own({"lr_decay_style": "linear"}, "pretrain", "--quiet", "--overwrite")[0] == 0
    assert weights() != expected


@pytest.mark.parametrize(("function", "planned"), [("cooldown", "0"), ("ends", "none")])
def test_a_longer_run_says_what_it_changes_of_the_function(own, capsys, function, planned):
    """Also where the old function has no rate beyond its own last step."""
    section = {"_target_": f"mine.py:{function}"}
    assert own(section, "pretrain", "--quiet", "--set", "step_scheduler.max_steps=3")[0] == 0

    code = run(["resume", "checkpoints", "--set", "step_scheduler.max_steps=6"])

    said = " ".join("".join(capsys.readouterr()).split())
    assert code == 0
    assert f"the learning rate from step 4 on: 0.01 instead of {planned} there, 0.005 at the last step" in said


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"_target_": "mine.py:cooldown", "coll": 3}, ["takes no `coll`", "did you mean `cool`?"]),
        ({"_target_": "mine.py:returns"}, ["needs `value`"]),
        ({"_target_": "mine.py:coldown"}, ["has no `coldown`", "did you mean `cooldown`?"]),
        ({"_target_": 5}, ["lr_scheduler._target_ is 5, but it must be text or null"]),
    ],
)
def test_a_wrong_section_is_refused_before_the_file_runs(own, section, words):
    """By what its source says, with one message."""
    Path("mine.py").write_text(SCHEDULE + "\nraise SystemExit('it ran')\n")

    code, _, said = own(section, "config show", "--check")

    assert code == 2
    assert all(word in " ".join(said.split()) for word in words), said


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"_target_": "mine.py:returns", "value": -0.5}, "returned -0.5 for step 3"),
        ({"_target_": "mine.py:returns", "value": float("nan")}, "returned nan for step 3"),
        ({"_target_": "mine.py:returns", "value": "half"}, "returned 'half' (str) for step 3"),
        ({"_target_": "mine.py:returns", "value": -1, "at": 5}, "returned -1 for step 5"),
        ({"_target_": "mine.py:fails"}, "raised ZeroDivisionError for step 3"),
    ],
)
def test_what_is_no_multiplier_is_one_error_that_names_the_step(own, section, words):
    """Whether the function returns something else or fails; the first and the last step before anything is trained."""
    code, _, said = own(section, "pretrain", "--quiet")

    said = " ".join(said.split())
    assert code == 2
    assert f"lr_scheduler._target_: `{section['_target_']}` {words}" in said
    assert "own.yaml:" in said
    assert "Traceback" not in said


def test_its_keys_are_those_of_the_function(own):
    """In `--explain`, completion and the schema; the keys of the own schedule neither stand there nor get defaults."""
    section = {"_target_": "mine.py:cooldown", "cool": 4}

    code, explained, _ = own(section, "config show", "--explain", "lr_scheduler.cool")
    config = load_config([Path("own.yaml")])
    keys = {key for key in known_keys(config) if key.startswith("lr_scheduler.")}

    assert code == 0
    assert "Updates of the way down" in explained
    assert config.get("lr_scheduler") == section
    assert keys == {f"lr_scheduler.{name}" for name in ("_target_", "cool", "max_steps")}
    jsonschema.validate(yaml.safe_load(Path("own.yaml").read_text()), json_schema())


def test_a_later_file_with_a_function_replaces_the_own_schedule(own):
    """As another `_target_` replaces the section of the old one."""
    own({"lr_decay_style": "linear"}, "config show")
    Path("more.yaml").write_text("lr_scheduler: {_target_: mine.py:cooldown}\n")

    config = load_config([Path("own.yaml"), Path("more.yaml")])

    assert config.get("lr_scheduler") == {"_target_": "mine.py:cooldown"}


def test_a_checkpoint_from_elsewhere_does_not_run_its_schedule_unasked(own, tmp_path, monkeypatch, capsys):
    """A run of one's own goes on; without the memory of having started it, the function needs consent."""
    section = {"_target_": "mine.py:cooldown"}
    assert own(section, "pretrain", "--quiet", "--set", "step_scheduler.max_steps=3")[0] == 0
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "of-another-user"))
    for name in [name for name in sys.modules if name.startswith("_amcli_target_")]:
        del sys.modules[name]
    Path("mine.py").write_text("open('ran', 'w')\n" + SCHEDULE)

    code = run(["resume", "checkpoints", "--set", "step_scheduler.max_steps=6"])

    said = " ".join(capsys.readouterr().err.split())
    assert code == 2
    assert "lr_scheduler._target_" in said
    assert "--trust-config" in said
    assert not Path("ran").exists()
