"""`amcli config show`: valid YAML with origins, for people and for scripts."""

from __future__ import annotations

import json

import pytest

from automodel_cli import app
from automodel_cli.engine.config.yaml_reader import parse_yaml


@pytest.fixture
def show(capsys):
    def run(*arguments, code=0):
        assert app.run(["config", "show", *arguments]) == code
        return capsys.readouterr()

    return run


def test_the_output_is_yaml_that_says_where_everything_comes_from(show, tmp_path):
    """File and line, option or default stand beside each value."""
    mine = tmp_path / "mine.yaml"
    mine.write_text("model:\n  n_layer: 6\n")

    text = show("-c", "examples/quickstart.yaml", "-c", str(mine), "--set", "optimizer.lr=1e-4").out

    values = parse_yaml(text, source="x", kind="file").value
    assert (values["model"]["n_layer"], values["optimizer"]["lr"]) == (6, 1e-4)
    origins = {line.split(":")[0].strip(): line.split("# ")[-1] for line in text.splitlines() if "# " in line}
    assert origins["n_layer"].endswith("mine.yaml:2")
    assert origins["lr"] == "--set optimizer.lr"
    assert origins["num_workers"] == "default"


@pytest.mark.parametrize("form", [["--set", "model.n_layer=24"], ["--model.n_layer", "24"], ["--model.n_layer=24"]])
def test_the_three_forms_of_an_override_are_one(show, form):
    """`--set` and the dotted options mean the same."""
    assert json.loads(show("--json", *form).out)["config"]["model"]["n_layer"] == 24


def test_json_has_values_and_origins(show):
    """The keys of the JSON are stable: config and origins, by dotted key."""
    shown = json.loads(show("--json", "--set", "seed=3").out)

    assert set(shown) == {"config", "origins"}
    assert shown["origins"]["seed"] == "--set seed"
    assert shown["origins"]["model.n_layer"].startswith("built-in quickstart.yaml:")


def test_what_is_wrong_is_said_after_what_is_there(show):
    """The configuration is printed also when it does not pass, and the exit code tells."""
    printed = show("--set", "step_scheduler.max_step=3", code=2)

    assert "max_step: 3" in printed.out
    assert "did you mean `max_steps`?" in printed.err


def test_no_origins_prints_bare_yaml(show):
    """For a file to start from."""
    assert "#" not in show("--no-origins").out
