"""The formula is what torch counts."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from automodel_cli.engine.models.calling import call
from automodel_cli.engine.models.outputs import logits_of
from automodel_cli.engine.plan.flops import flops_per_token
from automodel_cli.engine.plan.model_config import model_shape
from tests.engine.plan.conftest import SMALL_GPT2, SMALL_LLAMA, built, hf, ours

CONFIGS = {
    "ours": ours(**SMALL_GPT2),
    "hf gpt2": hf("GPT2Config", **SMALL_GPT2, tie_word_embeddings=False),
    "llama": hf("LlamaConfig", **SMALL_LLAMA),
    "qwen2 tied": hf("Qwen2Config", **SMALL_LLAMA, tie_word_embeddings=True),
    "qwen3": hf("Qwen3Config", **SMALL_LLAMA, head_dim=16),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_formula_is_what_torch_counts(config):
    """Every matrix product of forward and backward; attention in its plain form, which computes nothing twice."""
    B, T = 2, 24
    model = built(config, "cpu").train()
    ids_BT = torch.zeros(B, T, dtype=torch.int64)

    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        logits_of(call(model, {"input_ids": ids_BT})).sum().backward()

    assert flops_per_token(model_shape(config), T) * B * T == counter.get_total_flops()
