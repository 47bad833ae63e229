"""What a token costs in a model that is there is what torch counts, and what the plan said before."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from automodel_cli.engine.models.calling import call, logits_of
from automodel_cli.engine.models.gpt2 import build_gpt2_model
from automodel_cli.engine.train.run_facts import model_flops_per_token

SIZES = {"vocab_size": 211, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SIZES, "intermediate_size": 80, "num_key_value_heads": 2, "max_position_embeddings": 64}
TOKENS = {"bos_token_id": 0, "eos_token_id": 0}


def of(config_class, **arguments):
    config = getattr(transformers, config_class)(**arguments, **TOKENS)
    return transformers.AutoModelForCausalLM.from_config(config)


MODELS = {
    "ours": lambda: build_gpt2_model(vocab_size=211, n_positions=64, n_embd=32, n_layer=2, n_head=4),
    "llama": lambda: of("LlamaConfig", **LLAMA),
    "qwen3, wide heads": lambda: of("Qwen3Config", **LLAMA, head_dim=16),
}


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_the_cost_of_a_token_is_what_torch_counts(build):
    """Every matrix product of forward and backward; attention in its plain form, which computes nothing twice."""
    B, T = 2, 24
    model = build().train()

    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        ids_BT = torch.zeros(B, T, dtype=torch.int64)
        logits_of(call(model, {"input_ids": ids_BT})).sum().backward()

    assert model_flops_per_token(model, T) * B * T == counter.get_total_flops()


def test_of_a_mixture_of_experts_only_the_active_ones_count():
    """Four experts of which a token sees one cost as much as one, but for the router that chooses."""
    moe = {**LLAMA, "moe_intermediate_size": 48, "mlp_only_layers": [], "decoder_sparse_step": 1, "head_dim": 8}
    many = of("Qwen3MoeConfig", **moe, num_experts=4, num_experts_per_tok=1)
    one = of("Qwen3MoeConfig", **moe, num_experts=1, num_experts_per_tok=1)

    of_routers = 6 * (4 - 1) * SIZES["hidden_size"] * SIZES["num_hidden_layers"]
    assert model_flops_per_token(many, 24) == model_flops_per_token(one, 24) + of_routers


def test_a_model_that_states_no_sizes_has_no_known_cost():
    """Nothing is guessed."""
    assert model_flops_per_token(nn.Linear(3, 3), 8) is None
