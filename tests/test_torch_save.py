"""`checkpoint.model_save_format: torch_save`: weights for tools that read nothing else, and nothing that executes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from automodel_cli import app
from automodel_cli.engine.checkpoint.layout import model_files
from automodel_cli.engine.checkpoint.load_checkpoint import load
from automodel_cli.engine.checkpoint.manifest import read_manifest

FORMAT = "--set=checkpoint.model_save_format=torch_save"


def pretrained(config: Path, root: str, *options: str) -> Path:
    assert app.run(["pretrain", "-c", str(config), f"--set=checkpoint.checkpoint_dir={root}", *options]) == 0
    return Path(root) / "step_000006"


def weights_file(checkpoint: Path) -> list[str]:
    return model_files(read_manifest(checkpoint).files)


def test_the_file_holds_the_weights_that_safetensors_would(tiny_run):
    """Read by torch without a pickle that executes, by transformers, and by us; the same bytes every time."""
    expected = load(pretrained(tiny_run, "as-safetensors")).model_tensors

    checkpoint = pretrained(tiny_run, "one", FORMAT)

    assert weights_file(checkpoint) == ["model/pytorch_model.bin"]
    read = torch.load(checkpoint / "model/pytorch_model.bin", weights_only=True)
    ours = load(checkpoint).model_tensors
    theirs = transformers.GPT2LMHeadModel.from_pretrained(checkpoint / "model").state_dict()
    for name, tensor in expected.items():
        assert all(torch.equal(found[name], tensor) for found in (read, ours, theirs))
    again = pretrained(tiny_run, "two", FORMAT)
    assert (
        read_manifest(again).files["model/pytorch_model.bin"]
        == read_manifest(checkpoint).files["model/pytorch_model.bin"]
    )


def test_a_run_may_change_the_format_when_it_goes_on(tiny_run):
    """From torch_save to safetensors, and the end is that of a run that knew one format only."""
    straight = pretrained(tiny_run, "straight")
    pretrained(tiny_run, "mixed", FORMAT, "--set=checkpoint.max_recent_checkpoints=null")
    (Path("mixed") / "step_000006").rename("elsewhere")

    assert app.run(["resume", "mixed", "--set=checkpoint.model_save_format=safetensors"]) == 0

    mixed = Path("mixed/step_000006")
    assert weights_file(mixed) == ["model/model.safetensors"]
    name = "model/model.safetensors"
    assert read_manifest(mixed).files[name] == read_manifest(straight).files[name]


@pytest.mark.parametrize(
    "arguments", [["inspect-ckpt", "one/LATEST", "--verify"], ["inspect-ckpt", "one/LATEST", "--tree"]]
)
def test_it_is_looked_at_like_any_other(tiny_run, capsys, arguments):
    pretrained(tiny_run, "one", FORMAT)
    capsys.readouterr()

    assert app.run([*arguments, "--json"]) == 0

    assert "F32" in json.dumps(json.loads(capsys.readouterr().out))
