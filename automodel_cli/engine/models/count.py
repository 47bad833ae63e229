"""Parameters of a model by component, shared ones counted once."""

from __future__ import annotations

from torch import nn


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Numbers of parameters: `embedding`, `attention`, `mlp`, `norm`, `head`, `other`, and `total`.

    A tied head counts as embedding. Components are told from the names that GPT-2 and the Hugging
    Face models use; what has none of them is `other`.
    """
    counts = dict.fromkeys(("embedding", "attention", "mlp", "norm", "head", "other"), 0)
    for name, parameter in model.named_parameters():  # yields a shared parameter once
        counts[component_of(name)] += parameter.numel()
    return {**counts, "total": sum(counts.values())}


def component_of(name: str) -> str:
    """The component that a parameter belongs to.

    >>> component_of("transformer.h.0.attn.c_attn.weight"), component_of("model.embed_tokens.weight")
    ('attention', 'embedding')
    """
    parts = name.split(".")
    if any(part.startswith(("ln_", "norm", "input_layernorm", "post_attention_layernorm")) for part in parts):
        return "norm"
    if any(part in ("attn", "self_attn", "attention") for part in parts):
        return "attention"
    if any(part in ("mlp", "feed_forward", "block_sparse_moe") for part in parts):
        return "mlp"
    if any(part in ("wte", "wpe", "embed_tokens", "embed_positions", "embedding") for part in parts):
        return "embedding"
    return "head" if "lm_head" in parts else "other"
