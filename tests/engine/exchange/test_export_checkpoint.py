"""`amcli export`: a Hugging Face directory that is the same function as the checkpoint."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from automodel_cli import app
from automodel_cli.engine.checkpoint.layout import MODEL_FILE
from automodel_cli.engine.checkpoint.load_checkpoint import load
from automodel_cli.engine.checkpoint.rank_files import RankFiles, files_of_parts, texts_of
from automodel_cli.engine.checkpoint.read_tensors import LazyTensors
from automodel_cli.engine.checkpoint.save import Publication, Saving, begin, finish
from automodel_cli.engine.distributed.region import Part, Region
from automodel_cli.engine.exchange import export_checkpoint as export_module
from automodel_cli.engine.exchange.logits import largest_difference
from automodel_cli.engine.prep.load_tokenizer import load_tokenizer
from automodel_cli.errors import CheckpointError


@pytest.fixture
def trained(tiny_run, capsys) -> Path:
    """The run of two steps; the working directory holds `checkpoints/`."""
    assert app.run(["pretrain", "-c", str(tiny_run), "--set", "step_scheduler.max_steps=2"]) == 0
    capsys.readouterr()
    return Path("checkpoints/step_000002")


def exported(capsys, *arguments: object, code: int = 0) -> dict:
    assert app.run(["export", "--out", "out", "--json", *map(str, arguments)]) == code
    captured = capsys.readouterr()
    assert "Loading weights" not in captured.err  # bars of transformers, amid our own lines
    return json.loads(captured.out) if code == 0 else {"error": captured.err}


def test_transformers_loads_weights_and_tokenizer(trained, capsys):
    """Equal logits, equal ids, and what generation needs."""
    found = exported(capsys)

    assert found["logit_difference"] < 1e-5
    assert transformers.AutoModelForCausalLM.from_pretrained("out").config.vocab_size == 257
    tokenizer = transformers.AutoTokenizer.from_pretrained("out")
    text = "To be, or not to be: Zürich 日本\n\n  <x>"
    assert tokenizer.encode(text) == load_tokenizer("bytes").encode(text).tolist()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.model_max_length) == (256, 256, 16)
    assert transformers.GenerationConfig.from_pretrained("out").eos_token_id == 256
    assert found["num_parameters"] == json.loads(json.dumps(found))["num_parameters"] > 0
    assert "## Configuration of the run" in Path("out/README.md").read_text()


def test_weights_are_equal_by_bits_however_they_are_cut(trained, capsys):
    """Many small files with an index hold the tensors of the checkpoint."""
    exported(capsys, "--max-shard-gb", 0.001)
    whole = load_file(trained / "model/model.safetensors")
    exported(capsys, "--overwrite")
    assert not Path("out/model.safetensors.index.json").exists()
    save_file({"big": torch.zeros(400_000)}, "big.safetensors")

    Path("out/model.safetensors").unlink()
    export_module._write_weights(LazyTensors([trained / "model/model.safetensors"]), Path("out"), None, 8_000)

    index = json.loads(Path("out/model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 3
    assert index.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(load_file(Path("out") / index[name])[name], tensor)


LLAMA = """
  _target_: transformers.AutoModelForCausalLM.from_config
  config: {_target_: transformers.LlamaConfig, vocab_size: 257, hidden_size: 16, intermediate_size: 32,
    num_hidden_layers: 1, num_attention_heads: 2, max_position_embeddings: 16}
"""


def test_weights_in_the_parts_of_ranks_are_exported(tiny_run, capsys):
    """A model of transformers whose weights two ranks wrote: the comparison of logits reads the parts, too."""
    text = re.sub(r"(?<=^model:\n)(  .*\n)+", LLAMA.lstrip("\n"), tiny_run.read_text(), flags=re.MULTILINE)
    tiny_run.write_text(text)
    assert app.run(["pretrain", "-c", str(tiny_run), "--set", "step_scheduler.max_steps=1"]) == 0
    whole = Path("checkpoints/step_000001")
    snapshot = load(whole)
    partial = begin(Path("parts"), snapshot.step, 0)
    for rank in (1, 0):
        parts = []
        for name, tensor in snapshot.model_tensors.items():
            region = Region.whole(tensor.shape).chunk(0, rank, 2)
            parts.append(Part(name, region, tensor[region.within(Region.whole(tensor.shape))]))
        rank_files = RankFiles(texts_of(snapshot) if rank == 0 else {}, tuple(files_of_parts(MODEL_FILE, rank, parts)))
        finish(Saving(Path("parts"), 1, partial, rank_files, None if rank else Publication(), rank, writers=2))
    capsys.readouterr()

    found = exported(capsys, "parts")

    assert len(list(Path("parts/LATEST/model").glob("model_rank*.safetensors"))) == 2
    assert found["logit_difference"] < 1e-5
    for name, tensor in load_file("out/model.safetensors").items():
        assert torch.equal(tensor, snapshot.model_tensors[name])


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_another_type_rounds_the_weights_once(trained, dtype, capsys):
    """The exported values are those of the checkpoint, rounded, and transformers keeps the type."""
    found = exported(capsys, "--dtype", dtype)

    torch_type = export_module.DTYPES[dtype]
    original = load_file(trained / "model/model.safetensors")
    for name, tensor in load_file("out/model.safetensors").items():
        assert torch.equal(tensor, original[name].to(torch_type)), name
    assert found["dtype"] == str(torch_type).removeprefix("torch.")
    assert transformers.AutoModelForCausalLM.from_pretrained("out").dtype == torch_type


def test_other_weights_are_noticed(trained, capsys):
    """The comparison of logits can fail: one changed matrix is enough."""
    exported(capsys)
    tensors = load_file("out/model.safetensors")
    tensors["transformer.h.0.mlp.c_fc.weight"] += 0.1
    save_file(tensors, "out/model.safetensors", metadata={"format": "pt"})

    with pytest.raises(CheckpointError, match="other logits"):
        largest_difference(trained / "model", Path("out"), "float32")


def test_a_damaged_checkpoint_is_not_exported(trained, capsys):
    """One flipped bit, exit code 4, and nothing is left behind."""
    path = trained / "model/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    found = exported(capsys, code=4)

    assert "damaged" in found["error"]
    assert not [path for path in Path().iterdir() if "out" in path.name]


def test_what_is_in_the_way_stays(trained, capsys):
    """A directory of other things, and a model without --overwrite."""
    Path("out").mkdir()
    Path("out/notes.txt").write_text("precious")
    assert "not a model" in exported(capsys, "--overwrite", code=2)["error"]
    assert Path("out/notes.txt").read_text() == "precious"

    Path("out/notes.txt").unlink()
    exported(capsys)
    assert "--overwrite" in exported(capsys, code=2)["error"]


def test_a_place_that_cannot_be_written_to_is_said_with_exit_code_4(trained, capsys, monkeypatch):
    """A read-only file system, a file on the way, a full disk: what the system said, and nothing is left."""
    real = Path.mkdir

    def refuse(path: Path, *arguments: object, **options: object) -> None:
        if path.name.startswith(".out.tmp"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        real(path, *arguments, **options)

    Path("file").touch()
    below_a_file = ["export", "--out", "file/x"]
    assert app.run(below_a_file) == 4
    assert "file/x: the model could not be written: Not a directory" in capsys.readouterr().err
    monkeypatch.setattr(Path, "mkdir", refuse)

    error = exported(capsys, code=4)["error"]

    assert "out: the model could not be written: Read-only file system" in error
    assert not Path("out").exists()
