"""Any causal language model goes the whole way: trained, killed, resumed to the same bits, loaded by transformers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file

from automodel_cli import app
from automodel_cli.engine.config.template import preset_config
from automodel_cli.engine.config.yaml_reader import read_yaml

EXAMPLES = Path(__file__).parents[1] / "examples"
LLAMA = {
    "vocab_size": 257,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
AUTO = "transformers.AutoModelForCausalLM.from_config"


def hugging_face(config, target=AUTO, **options):
    return {"_target_": target, "config": {"_target_": f"transformers.{config}", **options}}


MODELS = {
    "gpt2": hugging_face(
        "GPT2Config",
        "transformers.GPT2LMHeadModel.from_config",
        vocab_size=257,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=256,
        eos_token_id=256,
    ),
    "llama": hugging_face("LlamaConfig", **LLAMA),
    "tied qwen2": hugging_face("Qwen2Config", **LLAMA, tie_word_embeddings=True),
    "qwen3": hugging_face("Qwen3Config", **LLAMA, head_dim=8),
    "mixtral": hugging_face(
        "MixtralConfig", **LLAMA, num_local_experts=4, num_experts_per_tok=2, output_router_logits=True
    ),
    "qwen2 moe": hugging_face(
        "Qwen2MoeConfig",
        **LLAMA,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
}


@pytest.fixture
def run_of(tiny_run):
    """Writes the tiny run with another model section, and runs it."""

    def run(model, *overrides, root="checkpoints", command=("pretrain",)):
        values = yaml.safe_load(tiny_run.read_text())
        path = tiny_run.with_name("model.yaml")
        path.write_text(yaml.safe_dump({**values, "model": model, "optimizer": {**values["optimizer"], "lr": 1e-2}}))
        options = [f for each in (*overrides, f"checkpoint.checkpoint_dir={root}") for f in ("--set", each)]
        assert app.run([*command, "-c", str(path), *options]) == 0
        return Path(root) / "LATEST" / "model"

    return run


def digest(model_dir):
    return hashlib.sha256((model_dir / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_model_of_transformers_is_trained_resumed_and_loaded_back(run_of, model, capsys):
    """4 steps straight equal 2 and 2 by SHA-256; `from_pretrained` finds every weight and the right configuration."""
    straight = run_of(model, "step_scheduler.max_steps=4", root="straight")
    run_of(model, "step_scheduler.max_steps=2")
    resumed = run_of(model, "step_scheduler.max_steps=4", command=("resume",))
    loaded, found = transformers.AutoModelForCausalLM.from_pretrained(resumed, output_loading_info=True)

    assert "chunked linear cross-entropy" in capsys.readouterr().out
    assert digest(resumed) == digest(straight)
    assert not any(found.values())
    expected = getattr(transformers, model["config"]["_target_"].rpartition(".")[2])
    options = {name: value for name, value in model["config"].items() if name != "_target_"}
    saved, built = loaded.config.to_diff_dict(), expected(**options).to_diff_dict()
    assert {**built, "architectures": [type(loaded).__name__], "dtype": "float32"} == saved
    metrics = [json.loads(line) for line in Path("straight/metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in metrics if record["event"] == "step"]
    assert losses[-1] < losses[0]


def test_pretraining_goes_on_from_a_local_directory(run_of):
    """`from_pretrained` starts at the weights of a bf16 file, as fp32 masters; `AutoConfig` reads its configuration."""
    torch.manual_seed(3)
    source = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).bfloat16()
    source.save_pretrained("source")
    model = {
        "_target_": "transformers.AutoModelForCausalLM.from_pretrained",
        "pretrained_model_name_or_path": "source",
    }
    fresh = {
        "_target_": AUTO,
        "config": {"_target_": "transformers.AutoConfig.from_pretrained", "pretrained_model_name_or_path": "source"},
    }

    still = run_of(model, "step_scheduler.max_steps=1", "optimizer.lr=0", root="still")
    moved = run_of(model, "step_scheduler.max_steps=1", root="moved")
    other = run_of(fresh, "step_scheduler.max_steps=1", "optimizer.lr=0", root="other")

    name = "model.layers.1.mlp.up_proj.weight"
    expected = source.state_dict()[name].float()
    assert torch.equal(load_file(still / "model.safetensors")[name], expected)
    assert not torch.equal(load_file(moved / "model.safetensors")[name], expected)
    assert not torch.equal(load_file(other / "model.safetensors")[name], expected)
    assert json.loads((still / "config.json").read_text())["dtype"] == "float32"


def test_weights_in_bf16_are_saved_and_resumed_in_bf16(run_of):
    """`precision: bf16-params` keeps the type through a checkpoint, bit for bit."""
    options = ("precision=bf16-params",)
    straight = run_of(MODELS["llama"], *options, "step_scheduler.max_steps=4", root="straight")
    run_of(MODELS["llama"], *options, "step_scheduler.max_steps=2")
    resumed = run_of(MODELS["llama"], *options, "step_scheduler.max_steps=4", command=("resume",))

    assert digest(resumed) == digest(straight)
    assert {tensor.dtype for tensor in load_file(resumed / "model.safetensors").values()} == {torch.bfloat16}
    assert transformers.AutoModelForCausalLM.from_pretrained(resumed).dtype == torch.bfloat16


def test_recomputing_ends_in_the_same_weights(run_of, capsys):
    """`activation_checkpointing` is said at the start and changes no bit of the run."""
    plain = run_of(MODELS["qwen3"], "step_scheduler.max_steps=2", root="plain")
    recomputed = run_of(
        MODELS["qwen3"], "step_scheduler.max_steps=2", "activation_checkpointing.mode=selective", root="recomputed"
    )

    assert "selective, 2 of 2 blocks" in capsys.readouterr().out
    assert digest(recomputed) == digest(plain)


def test_the_custom_example_learns_to_count(capsys):
    """The files as they are printed: a user's model, a user's dataset, a chunked loss, a checkpoint."""
    options = ["--set", "step_scheduler.max_steps=30", "--set", "num_threads=1"]

    assert app.run(["pretrain", "-c", str(EXAMPLES / "custom.yaml"), *options]) == 0

    assert "chunked linear cross-entropy" in capsys.readouterr().out
    records = [json.loads(line) for line in Path("checkpoints/custom/metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if record["event"] == "step"]
    assert losses[0] > 5
    assert losses[-1] < 1
    assert set(load_file("checkpoints/custom/LATEST/model/model.safetensors")) >= {"embed.weight", "head.weight"}


def test_the_llama_example_is_the_preset_and_trains(run_of):
    """Its own model section, made small."""
    values = yaml.safe_load((EXAMPLES / "hf_llama.yaml").read_text())
    values["model"]["config"] |= {**LLAMA, "bos_token_id": 256, "eos_token_id": 256}

    model_dir = run_of(values["model"], "step_scheduler.max_steps=1")

    assert preset_config("hf-llama").values == read_yaml(EXAMPLES / "hf_llama.yaml").value
    assert transformers.AutoConfig.from_pretrained(model_dir).num_key_value_heads == 2
