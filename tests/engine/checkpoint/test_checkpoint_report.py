"""Parameters are counted by component from names and shapes."""

from __future__ import annotations

import pytest

from automodel_cli.engine.checkpoint.checkpoint_report import component_of, count_parameters
from automodel_cli.engine.checkpoint.stored_tensors import TensorInfo


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("transformer.wte.weight", "embedding"),
        ("transformer.wpe.weight", "embedding"),
        ("transformer.h.11.attn.c_proj.bias", "attention"),
        ("transformer.h.0.mlp.c_fc.weight", "mlp"),
        ("transformer.h.0.ln_1.bias", "norm"),
        ("transformer.ln_f.weight", "norm"),
        ("lm_head.weight", "head"),
        ("model.embed_tokens.weight", "embedding"),
        ("model.layers.3.self_attn.q_proj.weight", "attention"),
        ("model.layers.3.self_attn.q_norm.weight", "norm"),
        ("model.layers.3.post_attention_layernorm.weight", "norm"),
        ("model.layers.3.mlp.experts.7.down_proj.weight", "mlp"),
        ("gpt_neox.embed_in.weight", "embedding"),
        ("embed_out.weight", "head"),
        ("anything.else", "other"),
    ],
)
def test_common_names_are_told_apart(name: str, component: str) -> None:
    """GPT-2, Llama-like, mixture-of-experts and GPT-NeoX names."""
    assert component_of(name) == component


def test_components_and_dtypes_both_add_up_to_the_total() -> None:
    """Nothing is counted twice or left out, scalars and empty tensors included."""
    tensors = {
        "transformer.wte.weight": TensorInfo("BF16", (10, 4), 80),
        "transformer.h.0.attn.c_attn.weight": TensorInfo("F32", (4, 12), 192),
        "temperature": TensorInfo("F32", (), 4),
        "empty": TensorInfo("F32", (0, 7), 0),
    }

    count = count_parameters(tensors, None)

    assert count.total == 40 + 48 + 1
    assert count.by_component == {"embedding": 40, "attention": 48, "other": 1}
    assert count.by_dtype == {"F32": 49, "BF16": 40}


@pytest.mark.parametrize(
    ("names", "config", "tied"),
    [
        (["wte"], {"tie_word_embeddings": True}, True),
        (["wte", "lm_head"], {"tie_word_embeddings": True}, False),
        (["wte"], {"tie_word_embeddings": False}, False),
        (["wte"], None, False),
    ],
)
def test_a_head_is_tied_if_the_config_says_so_and_none_is_stored(
    names: list[str], config: dict[str, bool] | None, tied: bool
) -> None:
    """A stored head is a head of its own, whatever the config says."""
    tensors = {f"{name}.weight": TensorInfo("F32", (2, 2), 16) for name in names}

    assert count_parameters(tensors, config).tied_head is tied
