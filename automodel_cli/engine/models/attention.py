"""Which attention a run gets, in words: a slow one is named, never taken in silence."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.backends.cuda import (
    SDPAParams,
    can_use_cudnn_attention,
    can_use_efficient_attention,
    can_use_flash_attention,
)

from automodel_cli.engine.models.calling import is_hugging_face
from automodel_cli.engine.models.gpt2 import GPT2LMHeadModel

_SDPA = "scaled_dot_product_attention"


def attention_in_words(model: nn.Module, device: torch.device, dtype: torch.dtype) -> str | None:
    """The kernel that attention runs on; None for a user's model, whose attention nobody knows.

    Args:
        model: Not wrapped yet.
        device: Where it is.
        dtype: Type of queries, keys and values.
    """
    if is_hugging_face(model):
        config: Any = model.config
        implementation: str = config._attn_implementation
        if implementation == "eager":
            return "eager: SLOW, and its scores of every pair of tokens are kept; attn_implementation: sdpa is better"
        if implementation != "sdpa":
            return implementation
        heads = getattr(config, "num_attention_heads", None)
        size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else None)
    elif isinstance(model, GPT2LMHeadModel):
        size = model.config.n_embd // model.config.n_head
    else:
        return None
    return f"{_SDPA}, {_kernel(size, device, dtype)}" if isinstance(size, int) else _SDPA


def _kernel(head_size: int, device: torch.device, dtype: torch.dtype) -> str:
    """The back end that torch chooses for causal attention of this head size."""
    if device.type != "cuda":
        return "flash for the CPU" if device.type == "cpu" else device.type
    q = torch.empty(1, 1, 128, head_size, device=device, dtype=dtype)
    parameters = SDPAParams(q, q, q, None, 0.0, True, False)
    for name, can_use in (
        ("flash", can_use_flash_attention),
        ("cuDNN", can_use_cudnn_attention),
        ("memory-efficient", can_use_efficient_attention),
    ):
        if can_use(parameters):
            return name
    return f"math: SLOW, as no fast kernel takes heads of {head_size} in {dtype}"
