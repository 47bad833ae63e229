"""Weights from every kind of source that is read, and from none that could run code."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from automodel_cli.engine.checkpoint.read_tensors import read_model_config, read_weights
from automodel_cli.engine.checkpoint.write_tensors import write_tensors
from automodel_cli.errors import CheckpointError

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.weight": torch.ones(4, dtype=torch.bfloat16)}


class Payload:
    """A pickle that creates a file when it is loaded carelessly."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def write_single(directory):
    save_file(TENSORS, directory / "model.safetensors")
    return directory


def write_sharded(directory):
    for name, tensor in TENSORS.items():
        save_file({name: tensor}, directory / f"{name[0]}.safetensors")
    index = {"metadata": {}, "weight_map": {name: f"{name[0]}.safetensors" for name in TENSORS}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def write_bin(directory):
    torch.save(TENSORS, directory / "pytorch_model.bin")
    return directory


def write_parts(directory):
    """As the ranks of a run write them: rows of a tensor in several files, and no index."""
    for rank, rows in enumerate((slice(0, 1), slice(1, 2))):
        blocks = {"a.weight": TENSORS["a.weight"][rows], "b.weight": TENSORS["b.weight"][2 * rank : 2 * rank + 2]}
        offsets = {"a.weight": (rank, 0), "b.weight": (2 * rank,)}
        write_tensors(directory / f"model_rank{rank}.safetensors", blocks, offsets)
    return directory


def write_training_script(directory):
    torch.save({"model": TENSORS, "step": 3}, directory / "ckpt.pt")
    return directory / "ckpt.pt"


@pytest.mark.parametrize("write", [write_single, write_sharded, write_bin, write_parts, write_training_script])
def test_every_form_gives_the_same_tensors(write, tmp_path):
    """Names, types and bits are those that were written."""
    source = write(tmp_path)

    found = read_weights(source)

    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_a_config_beside_the_weights_is_read(tmp_path):
    """None without one; a file that is no JSON object is named."""
    write_single(tmp_path)
    assert read_model_config(tmp_path) is None

    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert read_model_config(tmp_path) == {"model_type": "gpt2"}

    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        read_model_config(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.pt", "y.pth"])
def test_code_in_a_pickle_does_not_run(name, tmp_path):
    """The file is refused, and what it wanted to make is not there."""
    (tmp_path / name).write_bytes(pickle.dumps({"a": Payload(tmp_path / "made")}))

    with pytest.raises(CheckpointError, match="cannot be read"):
        read_weights(tmp_path / name)

    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("target", ["../outside.safetensors", "/etc/passwd", "deep/er.safetensors"])
def test_an_index_cannot_lead_elsewhere(target, tmp_path):
    """Only files beside the index are read."""
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": target}}))

    with pytest.raises(CheckpointError, match="only files beside it"):
        read_weights(tmp_path)


def test_what_is_missing_is_named(tmp_path):
    """No weights, a file of the index that is gone, no such path."""
    with pytest.raises(CheckpointError, match="there are no weights here"):
        read_weights(tmp_path)

    write_sharded(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"not here: b\.safetensors"):
        read_weights(tmp_path)

    with pytest.raises(CheckpointError, match="no such file"):
        read_weights(tmp_path / "nowhere")


def test_what_is_no_state_dict_is_refused(tmp_path):
    """A list of tensors has no names to go by."""
    torch.save([torch.ones(1)], tmp_path / "x.pt")

    with pytest.raises(CheckpointError, match="no state dict"):
        read_weights(tmp_path / "x.pt")
