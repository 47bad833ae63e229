"""Recomputing changes memory and nothing else: not a bit of a gradient, not a name of a parameter."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from automodel_cli.engine.models.calling import call, logits_of
from automodel_cli.engine.models.gpt2 import build_gpt2_model
from automodel_cli.engine.models.recompute import recompute_activations
from automodel_cli.errors import ConfigError

LLAMA = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MODELS = {
    "our gpt2": lambda: build_gpt2_model(vocab_size=61, n_positions=16, n_embd=16, n_layer=4, n_head=2, dropout=0.3),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, attention_dropout=0.3)),
}


def step(model):
    """Loss, gradients, and elements that the forward pass keeps for the backward pass."""
    torch.manual_seed(5)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        loss = logits_of(call(model, {"input_ids": torch.arange(32).reshape(2, 16)})).square().mean()
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}, sum(kept)


@pytest.mark.parametrize(("mode", "every"), [("full", 1), ("full", 2), ("selective", 1)])
@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_loss_and_gradients_are_the_same_bits_with_dropout(build, mode, every):
    """Less is kept, and every name and bit stays."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(build().train())
    words = recompute_activations(models[1], mode, every)

    loss, gradients, kept = step(models[0])
    again_loss, again_gradients, again_kept = step(models[1])

    assert words == f"{mode}, {4 // every} of 4 blocks"
    assert torch.equal(loss, again_loss)
    assert list(gradients) == list(again_gradients)
    assert all(torch.equal(gradient, again_gradients[name]) for name, gradient in gradients.items())
    assert again_kept < kept


def test_a_model_without_blocks_is_refused():
    """Instead of training with all activations in silence."""
    with pytest.raises(ConfigError, match="Embedding has no list of blocks"):
        recompute_activations(nn.Embedding(3, 3), "full")
