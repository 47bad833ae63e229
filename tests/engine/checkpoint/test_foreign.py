"""The tensors of other tools' files are described, and nothing in them runs."""

from __future__ import annotations

import json
import os
import pickle
import zipfile

import pytest
import torch
import torch.distributed.checkpoint as dcp
import transformers
from safetensors.torch import save_file

from automodel_cli.engine.checkpoint.foreign import read_foreign
from automodel_cli.engine.checkpoint.stored_tensors import TensorInfo
from automodel_cli.errors import CheckpointError

TENSORS = {"a.w": torch.randn(3, 4), "b": torch.ones(5, dtype=torch.bfloat16), "c": torch.zeros((), dtype=torch.int64)}
EXPECTED = {"a.w": ("F32", (3, 4)), "b": ("BF16", (5,)), "c": ("I64", ())}


class Payload:
    """A pickle that makes a directory when it is loaded carelessly."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def described(found):
    return {name: (info.dtype, info.shape) for name, info in found.tensors.items()}


def test_safetensors_and_torch_save(tmp_path):
    """Names, types and shapes; of a state dict in a dictionary the names are dotted."""
    save_file(TENSORS, tmp_path / "x.safetensors")
    torch.save({"model": TENSORS, "step": 3, "other": [torch.nn.Parameter(torch.ones(2))]}, tmp_path / "x.pt")

    assert described(read_foreign(tmp_path / "x.safetensors")) == EXPECTED
    inside = {f"model.{name}": value for name, value in EXPECTED.items()}
    assert described(read_foreign(tmp_path / "x.pt")) == {**inside, "other.0": ("F32", (2,))}


@pytest.mark.filterwarnings("ignore")  # torch warns that it saves without processes to talk to
def test_distributed_checkpoints(tmp_path):
    """`.metadata` as torch writes it today."""
    dcp.save({"model": {**TENSORS, "nested": {"d": torch.ones(2, 2)}}, "step": 7}, checkpoint_id=str(tmp_path / "dcp"))

    found = read_foreign(tmp_path / "dcp")

    inside = {f"model.{name}": value for name, value in EXPECTED.items()}
    assert described(found) == {**inside, "model.nested.d": ("F32", (2, 2))}
    assert found.tensors["model.a.w"].num_bytes == 48


def test_hugging_face_directories(tmp_path):
    """Whole and cut into several files."""
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=61, n_embd=16, n_layer=2, n_head=2))
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "cut", max_shard_size="20KB")

    whole, cut = read_foreign(tmp_path / "whole"), read_foreign(tmp_path / "cut")

    assert len({tensor.pieces[0].file for tensor in cut.stored.values()}) > 1
    assert described(whole) == described(cut)
    assert whole.config["model_type"] == "gpt2"


def hostile_torch_save(path, payload):
    with zipfile.ZipFile(path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({"a": payload}))
    return path / "x.pt"


def hostile_dcp(path, payload):
    (path / ".metadata").write_bytes(pickle.dumps(payload))
    return path


@pytest.mark.parametrize("make", [hostile_torch_save, hostile_dcp])
def test_code_in_a_pickle_does_not_run(make, tmp_path):
    """Whatever is said of the file, what its pickle wanted to do has not happened."""
    made = tmp_path / "made"
    place = make(tmp_path, Payload(made))

    try:
        found = read_foreign(place)
    except CheckpointError:
        found = None

    assert not made.exists()
    assert found is None or not found.tensors


def test_an_index_that_leads_elsewhere_is_refused(tmp_path):
    """Paths with `..` are not followed."""
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))

    with pytest.raises(CheckpointError, match="only files beside it"):
        read_foreign(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"not a pickle", b"\x80\x04\x8a\xff" + b"\xff" * 20])
def test_a_broken_pickle_is_one_clear_error(content, tmp_path):
    """However it is broken."""
    (tmp_path / ".metadata").write_bytes(content)

    with pytest.raises(CheckpointError):
        read_foreign(tmp_path)


def test_other_things_are_not_ours_to_describe(tmp_path):
    """An empty directory, a text."""
    (tmp_path / "x.txt").touch()

    assert read_foreign(tmp_path) is None
    assert read_foreign(tmp_path / "x.txt") is None


def test_where_a_tensor_begins_is_known(tmp_path):
    """So that it can be read without the library."""
    save_file({"a": torch.tensor([1.5, 2.5])}, tmp_path / "x.safetensors")

    info: TensorInfo = read_foreign(tmp_path / "x.safetensors").tensors["a"]

    content = (tmp_path / "x.safetensors").read_bytes()[info.begin : info.begin + info.num_bytes]
    assert torch.frombuffer(bytearray(content), dtype=torch.float32).tolist() == [1.5, 2.5]
