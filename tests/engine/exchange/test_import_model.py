"""`amcli import` and `checkpoint.init_from`: foreign weights as a start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from automodel_cli import app
from automodel_cli.engine.checkpoint.load_checkpoint import load
from automodel_cli.engine.checkpoint.run_directory import run_lock
from automodel_cli.engine.config.config import read_configs
from automodel_cli.engine.config.instantiate import instantiate
from automodel_cli.engine.models.calling import logits_of
from automodel_cli.engine.models.stored_weights import adopt_weights

NO_SPECIAL = {"bos_token_id": None, "eos_token_id": None}
GPT2 = transformers.GPT2Config(vocab_size=257, n_positions=16, n_embd=16, n_layer=2, n_head=2, **NO_SPECIAL)
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = transformers.LlamaConfig(vocab_size=61, num_key_value_heads=2, **SMALL)
QWEN = transformers.Qwen2Config(vocab_size=61, num_key_value_heads=2, tie_word_embeddings=True, **SMALL)
EXACT_GELU = transformers.GPT2Config(**{**GPT2.to_dict(), "activation_function": "gelu"})


@pytest.fixture
def source():
    """Writes a model of transformers into `source`."""

    def write(config):
        torch.manual_seed(3)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        model.save_pretrained("source")
        return model

    return write


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (GPT2, "GPT2LMHeadModel"),
        (EXACT_GELU, "GPT2LMHeadModel"),
        (LLAMA, "LlamaForCausalLM"),
        (QWEN, "Qwen2ForCausalLM"),
    ],
    ids=["gpt2", "gpt2 with exact gelu", "llama", "tied qwen2"],
)
def test_the_checkpoint_is_the_same_function(source, config, name, capsys):
    """Its configuration builds the model, its weights are those of the directory, and resume refuses it."""
    original = source(config)

    assert app.run(["import", "source", "--out", "run", "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    snapshot = load(Path(found["directory"]))
    model = instantiate(read_configs([Path(found["directory"])]), "model", {"device": torch.device("cpu")})
    adopt_weights(model, snapshot.model_tensors)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        difference = (logits_of(model.eval()(ids)) - original(ids).logits).abs().max()
    assert float(difference) < 1e-5
    assert found["model_class"] == name
    assert app.run(["inspect-ckpt", "run"]) == 0
    assert "weights only" in capsys.readouterr().out
    assert app.run(["resume", "run"]) != 0


def test_a_run_starts_from_imported_weights(source, tiny_run, capsys):
    """The first loss is that of the weights, whichever form they come in; the resumed run does not read them again."""
    source(GPT2)
    assert app.run(["import", "source", "--out", "run"]) == 0
    steps = ["--set", "step_scheduler.max_steps=2", "--set", "model.dropout=0"]
    losses = {}
    for form in ("source", "run", "source/model.safetensors", None):
        init = ["--set", f"checkpoint.init_from={form}"] if form else []
        assert app.run(["pretrain", "-c", str(tiny_run), *steps, *init, "--overwrite"]) == 0
        lines = [json.loads(line) for line in Path("checkpoints/metrics.jsonl").read_text().splitlines()]
        losses[form] = next(line["loss"] for line in lines if line["event"] == "step")

    assert losses["source"] == losses["run"] == losses["source/model.safetensors"] != losses[None]


def test_what_cannot_be_imported_is_told(capsys):
    """No configuration, an unknown architecture, code beside the weights."""
    Path("source").mkdir()
    assert app.run(["import", "source"]) == 4
    assert "no config.json" in capsys.readouterr().err

    hostile = {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "evil.Evil"}}
    Path("source/config.json").write_text(json.dumps(hostile))
    Path("source/evil.py").write_text("raise SystemExit('ran')")
    assert app.run(["import", "source"]) == 4
    assert "'mine' is none that transformers knows" in capsys.readouterr().err
    assert not Path("imports").exists()


def test_weights_that_are_not_there_are_found_before_the_run(tiny_run, capsys):
    """With what lies beside them."""
    Path("weights-a").mkdir()

    assert app.run(["pretrain", "-c", str(tiny_run), "--set", "checkpoint.init_from=weights-b"]) == 2

    said = capsys.readouterr().err
    assert "there is no 'weights-b'" in said
    assert "weights-a" in said


def test_milestones_are_kept(tiny_run):
    """Of the checkpoints beyond the most recent, the multiples of keep_every_steps stay."""
    options = [
        "checkpoint.max_recent_checkpoints=1",
        "checkpoint.keep_every_steps=4",
        "validation_dataset=null",
        "step_scheduler.val_every_steps=null",
    ]
    sets = [part for option in options for part in ("--set", option)]

    assert app.run(["pretrain", "-c", str(tiny_run), *sets, "--set", "step_scheduler.ckpt_every_steps=1"]) == 0

    assert sorted(path.name for path in Path("checkpoints").glob("step_*")) == ["step_000004", "step_000006"]
    assert load_file("checkpoints/step_000004/model/model.safetensors")


def test_a_directory_in_which_a_run_is_working_is_left_alone(source, capsys):
    """A step 0 that appears under a run would be pruned by it, or be resumed instead of it."""
    source(GPT2)

    with run_lock(Path("run")):
        assert app.run(["import", "source", "--out", "run"]) == 4
        assert "another run is saving into this directory" in capsys.readouterr().err
        assert list(Path("run").glob("step_*")) == []


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"x": {"_target_": "os.mkdir", "path": "ran"}}, "names `os.mkdir`"),
        ({"x": [[{"_target_": "os.mkdir", "path": "ran"}]]}, "names `os.mkdir`"),
        ({"rope_parameters": [3]}, "it is no configuration of LlamaConfig"),
        ({"model_type": ["llama"]}, "is none that transformers knows"),
        ({"_target_": "os.mkdir", "path": "ran"}, "takes no `path`"),
        ({"backbone_kwargs": {"trust_remote_code": True}}, "runs code that lies beside the weights"),
        ({"quantization_config": {"quant_method": "fp8"}}, "rewrites the model"),
    ],
    ids=[
        "a target",
        "a target in a list",
        "a wrong type",
        "a list of types",
        "a target of its own",
        "remote code",
        "quantization",
    ],
)
def test_a_downloaded_config_is_data(source, more, says, capsys):
    """What it names is not built, and what would run code is refused; exit code 4."""
    source(LLAMA)
    file = Path("source/config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | more))

    code = app.run(["import", "source", "--out", "run"])

    assert code == 4
    assert says in capsys.readouterr().err
    assert not Path("ran").exists()


def test_code_that_a_downloaded_config_leads_to_is_left_behind(source, capsys):
    """`auto_map` names files beside the weights; a known architecture needs none of them."""
    source(LLAMA)
    file = Path("source/config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": {"AutoConfig": "code.C"}}))

    assert app.run(["import", "source", "--out", "run"]) == 0
    assert "auto_map" not in Path("run/step_000000/config.yaml").read_text()
