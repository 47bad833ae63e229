"""Foreign weights as the start of a model."""

from __future__ import annotations

import pytest
import torch
import transformers

from automodel_cli.engine.models.calling import logits_of
from automodel_cli.engine.models.gpt2 import build_gpt2_model
from automodel_cli.engine.models.stored_weights import adopt_weights
from automodel_cli.errors import CheckpointError

GPT2 = {"vocab_size": 61, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
NO_SPECIAL = {"bos_token_id": None, "eos_token_id": None}
LLAMA = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
IDS = torch.arange(12).reshape(1, 12)


@pytest.fixture
def gpt2():
    torch.manual_seed(1)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2, **NO_SPECIAL)).eval()


def wrapped(tensors):
    return {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()}


def without_head(tensors):
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items() if name != "lm_head.weight"}


def with_stored_masks(tensors):
    mask = torch.ones(1, 1, 16, 16)
    return {**tensors, "transformer.h.0.attn.bias": mask, "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}


@pytest.mark.parametrize("form", [dict, wrapped, without_head, with_stored_masks])
def test_gpt2_of_transformers_gives_equal_logits(gpt2, form):
    """In every form in which its weights are found in the wild."""
    ours = build_gpt2_model(**GPT2, dropout=0.0).eval()

    adopt_weights(ours, form(gpt2.state_dict()))

    with torch.no_grad():
        torch.testing.assert_close(logits_of(ours(IDS)), gpt2(IDS).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_llama_gives_equal_bits(tied):
    """Tied and untied output layers; the base model's prefix may be missing."""
    config = transformers.LlamaConfig(**LLAMA, tie_word_embeddings=tied)
    source, target = transformers.LlamaForCausalLM(config), transformers.LlamaForCausalLM(config)

    adopt_weights(target, {name.removeprefix("model."): tensor for name, tensor in source.state_dict().items()})

    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor), name


def test_half_precision_becomes_the_models_type(gpt2):
    """A bf16 file starts an fp32 model with the values of bf16."""
    ours = build_gpt2_model(**GPT2)
    tensors = {name: tensor.bfloat16() for name, tensor in gpt2.state_dict().items()}

    adopt_weights(ours, tensors)

    assert ours.transformer.wte.weight.dtype == torch.float32
    assert torch.equal(ours.transformer.wte.weight, tensors["transformer.wte.weight"].float())


def test_an_untied_head_is_refused_by_a_tied_model(gpt2):
    """It would be lost in silence."""
    ours = build_gpt2_model(**GPT2)
    before = ours.transformer.wte.weight.clone()
    tensors = {**gpt2.state_dict(), "lm_head.weight": torch.randn(61, 16)}

    with pytest.raises(CheckpointError, match=r"lm_head\.weight is not in the model"):
        adopt_weights(ours, tensors)

    assert torch.equal(ours.transformer.wte.weight, before)


def test_another_architecture_is_refused(gpt2):
    """Every difference is told."""
    ours = build_gpt2_model(**{**GPT2, "n_layer": 3, "vocab_size": 64})

    with pytest.raises(CheckpointError, match=r"(?s)wte.*\(61, 16\).*\(64, 16\).*h\.2\.ln_1\.weight is missing"):
        adopt_weights(ours, gpt2.state_dict())
