"""Initial weights are the model's own, depend on a seed and names alone, and are all accounted for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    DeepseekV3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MixtralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
)

from automodel_cli.engine.distributed.module_tree import all_tensors, is_meta, materialise, move_to_meta
from automodel_cli.engine.models.gpt2 import GPT2LMHeadModel, build_gpt2_model
from automodel_cli.engine.models.head import find_head
from automodel_cli.engine.models.initial import UndrawnError, drawn, has_rules

LLAMA = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GPT2 = {"vocab_size": 64, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 4}
FACTORS = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 1024}
SCALED_ROPE = {"rope_type": "llama3", "rope_theta": 500000.0} | FACTORS
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "qk_nope_head_dim": 8}
ROUTED = {"moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1}
CONFIGS = {
    "gpt2": lambda: GPT2Config(**GPT2),
    "llama, scaled positions": lambda: LlamaConfig(**LLAMA, rope_parameters=SCALED_ROPE),
    "qwen2, tied": lambda: Qwen2Config(**LLAMA, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**LLAMA, head_dim=8),
    "mixtral": lambda: MixtralConfig(**LLAMA, num_local_experts=4),
    "gemma3, several windows": lambda: Gemma3TextConfig(**LLAMA, head_dim=8),
    "deepseek, latent attention": lambda: DeepseekV3Config(**(LLAMA | LATENT | ROUTED | {"num_key_value_heads": 4})),
    "gpt-neo, masks as buffers": lambda: GPTNeoConfig(
        vocab_size=64,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=32,
    ),
    "opt, padding token": lambda: OPTConfig(
        vocab_size=64,
        hidden_size=32,
        ffn_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        max_position_embeddings=32,
    ),
    "bloom": lambda: BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4),
    "mamba": lambda: MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2),
}


def meta_model(name: str) -> nn.Module:
    with torch.device("meta"):
        return build_gpt2_model(**GPT2) if name == "ours" else AutoModelForCausalLM.from_config(CONFIGS[name]())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_of_transformers_begins_as_its_constructor_would_have_made_it(name):
    """The same names, shapes and types; equal buffers and constants; random numbers of the same spread."""
    torch.manual_seed(0)
    expected = all_tensors(AutoModelForCausalLM.from_config(CONFIGS[name]()))

    found = dict(drawn(meta_model(name), seed=1))

    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        other = expected[key]
        assert (tensor.shape, tensor.dtype) == (other.shape, other.dtype), key
        if isinstance(other, nn.Parameter) and other.std() > 0 and other.numel() >= 256:
            assert tensor.std().item() == pytest.approx(other.std().item(), rel=0.3), key
        elif not isinstance(other, nn.Parameter) or other.std() == 0:
            assert torch.equal(tensor, other), key


def test_our_gpt2_begins_as_published():
    """Normal with 0.02, ends of residual branches divided by the root of twice the layers, norms 1, biases 0."""
    found = dict(drawn(meta_model("ours"), seed=1))

    assert found.keys() == all_tensors(build_gpt2_model(**GPT2)).keys()
    for name, tensor in found.items():
        if name.endswith("c_proj.weight"):
            assert tensor.std().item() == pytest.approx(0.01, rel=0.15), name
        elif tensor.dim() == 2:
            assert tensor.std().item() == pytest.approx(0.02, rel=0.15), name
        else:
            assert torch.equal(tensor, torch.full_like(tensor, float(not name.endswith("bias")))), name


@pytest.mark.parametrize("name", ["ours", "llama, scaled positions"])
def test_the_numbers_depend_on_the_seed_and_on_names_alone(name):
    """Neither torch's generator nor what else is in the model has a say, and the generator goes on undisturbed."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = dict(drawn(meta_model(name), seed=1))
    after = torch.get_rng_state()
    torch.manual_seed(6)
    again, other = dict(drawn(meta_model(name), seed=1)), dict(drawn(meta_model(name), seed=2))

    assert torch.equal(before, after)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first if first[key].dim() == 2)
    matrices = [tensor for tensor in first.values() if tensor.dim() == 2]
    same = [(a, b) for a in matrices for b in matrices if a is not b and a.shape == b.shape and torch.equal(a, b)]
    assert not same


def test_what_no_checkpoint_holds_can_be_asked_for_alone():
    """The frequencies of rotary positions are made anew without drawing the model again."""
    blank = meta_model("llama, scaled positions")
    everything = dict(drawn(blank, seed=1))

    found = dict(drawn(blank, seed=1, wanted=["model.rotary_emb.inv_freq"]))

    assert list(found) == ["model.rotary_emb.inv_freq"]
    assert torch.equal(found["model.rotary_emb.inv_freq"], everything["model.rotary_emb.inv_freq"])


def test_the_meta_model_is_left_as_it_was():
    """Drawing twice from one meta model gives the same, and it takes no memory in between."""
    blank = meta_model("gpt-neo, masks as buffers")

    first, second = dict(drawn(blank, seed=1)), dict(drawn(blank, seed=1))

    assert all(tensor.is_meta for tensor in all_tensors(blank).values())
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_tensor_that_no_rule_draws_is_refused_by_name():
    """Whatever memory held would be trained on otherwise; a number that cannot be NaN is noticed, too."""
    extra = {"mine": nn.Parameter(torch.empty(3, device="meta")), "flags": torch.empty(3, dtype=torch.bool)}
    for key, tensor in extra.items():
        model = meta_model("llama, scaled positions")
        if isinstance(tensor, nn.Parameter):
            model.model.layers[1].register_parameter(key, tensor)
        else:
            model.model.layers[1].register_buffer(key, tensor.to("meta"))

        with pytest.raises(UndrawnError, match=rf"nothing draws model\.layers\.1\.{key}"):
            list(drawn(model, seed=1))


def test_a_rule_that_reaches_into_blocks_from_outside_is_refused(monkeypatch):
    """The blocks are gone by then, and what it writes would be lost in silence."""
    rule = LlamaForCausalLM._init_weights

    def reaching(self, module):
        rule(self, module)
        if module is self:
            module.model.layers[0].mlp.up_proj.weight.zero_()

    monkeypatch.setattr(LlamaForCausalLM, "_init_weights", reaching)

    with pytest.raises(UndrawnError, match="around the blocks"):
        list(drawn(meta_model("llama, scaled positions"), seed=1))


def test_a_class_of_the_users_is_not_taken_for_the_one_it_derives_from():
    """Its constructor may do more, which the rules of its base do not know."""
    mine = type("Mine", (LlamaForCausalLM,), {"__module__": "mine"})
    ours = type("Ours", (GPT2LMHeadModel,), {"__module__": "mine"})

    assert has_rules(LlamaForCausalLM)
    assert has_rules(GPT2LMHeadModel)
    assert not has_rules(mine)
    assert not has_rules(ours)
    assert not has_rules(nn.Linear)


@pytest.mark.parametrize("name", ["ours", *CONFIGS])
def test_the_head_of_a_meta_model_is_that_of_the_model(name):
    """The loss in place of the head is chosen before there is content, experts included."""
    blank = meta_model(name)
    full = copy.deepcopy(blank)
    materialise(full, torch.device("cpu"))
    for key, tensor in drawn(blank, seed=1):
        all_tensors(full)[key].data.copy_(tensor)

    found = {key for key, module in blank.named_modules() if module is find_head(blank).layer}

    assert found == {key for key, module in full.named_modules() if module is find_head(full).layer}
    assert is_meta(blank)


def test_a_model_taken_apart_and_put_together_is_the_same():
    """Ties, types and buffers survive; only identities change."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["qwen2, tied"]())
    ids = torch.arange(8)[None]
    before = model(ids).logits

    content = move_to_meta(model)
    assert all(tensor.is_meta for tensor in all_tensors(model).values())
    materialise(model, torch.device("cpu"))
    with torch.no_grad():
        for name, tensor in all_tensors(model).items():
            tensor.copy_(content[name])

    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model(ids).logits, before)
