"""Documents that share a sample do not see each other, and a batch says nothing that the model ignores."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from automodel_cli.engine.models.calling import call, logits_of
from automodel_cli.engine.models.gpt2 import build_gpt2_model
from automodel_cli.errors import ConfigError

SIZES = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GPT2 = {"vocab_size": 61, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}


def hugging_face(name, attention="sdpa", **options):
    return lambda: transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, name)(**options), attn_implementation=attention
    )


MODELS = {
    "our gpt2": lambda: build_gpt2_model(**GPT2),
    "gpt2": hugging_face("GPT2Config", **GPT2),
    "llama": hugging_face("LlamaConfig", **SIZES),
    "llama, eager": hugging_face("LlamaConfig", "eager", **SIZES),
    "qwen2": hugging_face("Qwen2Config", **SIZES),
    "qwen3": hugging_face("Qwen3Config", **SIZES, head_dim=8),
    "mixtral": hugging_face("MixtralConfig", **SIZES, num_local_experts=2),
}
# Two rows of three documents each, so that a border is nowhere at the same place.
LENGTHS = ((5, 1, 10), (7, 8, 1))


def packed():
    torch.manual_seed(1)
    ids = torch.randint(61, (2, 16))
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in LENGTHS])
    documents = torch.stack([torch.repeat_interleave(torch.arange(3), torch.tensor(row)) for row in LENGTHS])
    return {"input_ids": ids, "position_ids": positions, "document_ids": documents}


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_a_packed_document_has_the_loss_and_gradient_that_it_has_alone(build):
    """Loss of every document and gradient of all, against one forward pass per document."""
    torch.manual_seed(0)
    model = build().eval()
    batch = packed()
    alone, alone_total = [], 0.0
    for row, lengths in zip(batch["input_ids"], LENGTHS, strict=True):
        for ids in row.split(lengths):
            logits = logits_of(call(model, {"input_ids": ids[None]}))[0]
            alone.append(F.cross_entropy(logits, ids, reduction="sum"))
            alone_total = alone_total + alone[-1]
    expected = gradients(model, alone_total)

    token_losses = F.cross_entropy(
        logits_of(call(model, batch)).flatten(0, 1), batch["input_ids"].flatten(), reduction="none"
    )
    together = [each.sum() for each in token_losses.split([n for row in LENGTHS for n in row])]

    torch.testing.assert_close(torch.stack(together), torch.stack(alone), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients(model, token_losses.sum()), expected, rtol=1e-4, atol=1e-5)


def test_without_borders_a_document_would_see_the_one_before():
    """What the test above would find if the mask were ignored."""
    torch.manual_seed(0)
    model = build_gpt2_model(**GPT2).eval()
    batch = packed()

    masked = logits_of(call(model, batch))
    open_ = logits_of(call(model, {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}))

    torch.testing.assert_close(masked[0, :5], open_[0, :5])
    assert (masked[0, 5:] - open_[0, 5:]).abs().max() > 1e-3


class Plain(nn.Module):
    """A user's model that knows nothing of documents."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(61, 61)

    def forward(self, input_ids):
        return self.embed(input_ids)


def test_borders_that_a_model_would_ignore_are_refused():
    """Its attention would cross them in silence."""
    with pytest.raises(ConfigError, match=r"position_ids and document_ids.*Plain\.forward takes no such"):
        call(Plain(), packed())


def test_a_models_cache_is_off():
    """Only generation uses it; in training it would keep the keys and values of every layer twice."""
    output = call(MODELS["llama"](), {"input_ids": packed()["input_ids"]})

    assert output.past_key_values is None
