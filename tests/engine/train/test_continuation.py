"""How a run goes on: whose code it may run."""

from __future__ import annotations

import pytest
import torch

from automodel_cli.engine.checkpoint.save import save
from automodel_cli.engine.checkpoint.snapshot import Snapshot
from automodel_cli.engine.train.continuation import plan_resume
from automodel_cli.errors import ConfigError


@pytest.fixture
def checkpoint(tiny_run, tmp_path):
    """A checkpoint whose configuration names a model of the user's own, by a path relative to nothing but itself."""
    (tmp_path / "mine.py").write_text("def build(vocab_size): ...\n")
    text = (
        tiny_run.read_text().split("model:")[0] + f"model: {{_target_: '{tmp_path}/mine.py:build', vocab_size: 257}}\n"
    )
    text += "dataset:" + tiny_run.read_text().split("dataset:", 1)[1]
    tensors = {"weight": torch.zeros(2)}
    snapshot = Snapshot(
        step=3,
        config_yaml=text,
        model_tensors=tensors,
        model_config=None,
        optim_tensors=tensors,
        train_state={"step": 3},
        rng_tensors={"torch_cpu": torch.get_rng_state()},
    )
    return save(tmp_path / "checkpoints", snapshot, facts={"loss": 1.0})


def test_what_only_the_checkpoint_names_is_refused_and_the_option_is_named(checkpoint):
    """In the parent, before torch or the model's file is imported."""
    with pytest.raises(ConfigError, match="code that amcli does not know") as caught:
        plan_resume(checkpoint, None, [])

    assert "--trust-config" in caught.value.help


def test_consent_makes_it_code_and_lists_it(checkpoint, tmp_path):
    """The plan is made, and says which file will run."""
    plan = plan_resume(checkpoint, None, [], trust=True)

    assert any(str(tmp_path / "mine.py") in note and "SHA-256" in note for note in plan.settings.notes)


def test_the_runs_own_file_needs_no_consent(checkpoint, tiny_run):
    """What is named with -c is what the user runs."""
    tiny_run.write_text((checkpoint / "config.yaml").read_text())

    assert plan_resume(checkpoint, [tiny_run], []).config.get("model._target_").endswith("mine.py:build")
