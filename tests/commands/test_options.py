"""What `-c` takes, and what is said about a path that is no configuration."""

from __future__ import annotations

import pytest
import torch

from automodel_cli import app
from automodel_cli.engine.checkpoint.save import save
from automodel_cli.engine.checkpoint.snapshot import Snapshot


@pytest.fixture
def place(tmp_path):
    """A directory with configurations, two checkpoints of a run, and an empty directory."""
    (tmp_path / "nanogpt.yaml").write_text("seed: 1\n")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/llama.yaml").write_text("seed: 2\n")
    (tmp_path / "empty").mkdir()
    for step in (3, 6):
        tensors = {"weight": torch.zeros(2)}
        snapshot = Snapshot(
            step=step,
            config_yaml=f"seed: {step}\n",
            model_tensors=tensors,
            model_config=None,
            optim_tensors=tensors,
            train_state={"step": step},
            rng_tensors={"torch_cpu": torch.get_rng_state()},
        )
        save(tmp_path / "checkpoints", snapshot, facts={"loss": 1.0})
    return tmp_path


@pytest.mark.parametrize(
    ("path", "seed"),
    [
        ("nanogpt.yaml", 1),
        ("checkpoints", 6),
        ("checkpoints/LATEST", 6),
        ("checkpoints/step_000003", 3),
        ("checkpoints/step_000003/config.yaml", 3),
    ],
)
def test_files_checkpoints_and_runs_are_configurations(place, capsys, path, seed):
    """A run's directory means its newest checkpoint."""
    app.run(["config", "show", "--no-origins", "-c", path])

    assert f"seed: {seed}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "message", "help_"),
    [
        ("nanogtp.yaml", "nanogtp.yaml: there is no such file", "did you mean nanogpt.yaml?"),
        ("nanogpt", "nanogpt: there is no such file", "did you mean nanogpt.yaml?"),
        ("config/llama.yaml", "there is no such file", "did you mean configs/llama.yaml?"),
        ("configs/zzz.yaml", "there is no such file", "YAML files in configs: configs/llama.yaml"),
        ("gone/away/x", "there is no such file", "YAML files in .: nanogpt.yaml"),
        ("configs", "this is a directory, and neither a checkpoint", "YAML files in configs: configs/llama.yaml"),
        ("empty", "this is a directory", "there are no YAML files in empty; `amcli config init my.yaml`"),
    ],
)
@pytest.mark.parametrize("command", [["config", "show"], ["pretrain"], ["config", "show", "--check"]], ids=" ".join)
def test_a_path_that_is_no_configuration_names_what_is_there(place, capsys, command, path, message, help_):
    """One line with the path as it was typed, and one with what would work; the same in every command."""
    assert app.run([*command, "-c", path]) == 2

    said = capsys.readouterr().err
    assert f"error: {path}" in said
    assert message in said
    assert help_ in said
