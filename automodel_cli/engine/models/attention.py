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

from automodel_cli.engine.models.document_attention import LEAST_HEAD_SIZE, refuse_states
from automodel_cli.engine.models.gpt2 import GPT2LMHeadModel
from automodel_cli.engine.models.sizes import is_hugging_face

_SDPA = "scaled_dot_product_attention"
_BLOCKS = "flex_attention, in the blocks of pairs that a document has"
_MASK = "a mask of every pair of tokens"


def attention_in_words(model: nn.Module, device: torch.device, dtype: torch.dtype) -> str | None:
    """The kernel that attention runs on; None for a user's model, whose attention is not known.

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
    elif not isinstance(model, GPT2LMHeadModel):
        return None
    size = head_size_of(model)
    return f"{_SDPA}, {_kernel(size, device, dtype)}" if isinstance(size, int) else _SDPA


def keep_within_documents(
    model: nn.Module, device: torch.device, *, may_change: bool = True, splits_sequence: bool = False
) -> str | None:
    """Chooses how the model's attention stays within documents, in place; returns the choice in words.

    Args:
        model: Not wrapped yet; None is returned for a user's, which is given the borders and has its own way.
        device: Where it is.
        may_change: Whether the attention of a Hugging Face model may be chosen: the configuration names none.
        splits_sequence: Whether context-parallel ranks have parts of a sample, which blocks do not allow.

    Raises:
        ConfigError: A Hugging Face model has layers that see across every border.
    """
    if isinstance(model, GPT2LMHeadModel):
        obstacle = _obstacle(model, splits_sequence)
    elif is_hugging_face(model):
        refuse_states(model)
        config: Any = model.config
        if config._attn_implementation not in ("sdpa", "eager"):
            return str(config._attn_implementation)
        obstacle = _obstacle(model, splits_sequence)
        if not getattr(model, "_supports_flex_attn", False):
            obstacle = f"{type(model).__name__} of transformers has no flex_attention"
        elif not may_change:
            obstacle = f"attn_implementation: {config._attn_implementation} was asked for"
    else:
        return None
    if device.type != "cuda":
        return f"{_MASK}, through {_SDPA}"
    if obstacle is not None:
        return f"{_MASK}: SLOW, as {obstacle}"
    if isinstance(model, GPT2LMHeadModel):
        model.transformer.attends_in_blocks = True
    else:
        model.set_attn_implementation("flex_attention")  # type: ignore[operator]
    return _BLOCKS


def _obstacle(model: nn.Module, splits_sequence: bool) -> str | None:
    """Why a model cannot attend in blocks, or None."""
    size = head_size_of(model)
    if splits_sequence:
        return "flex_attention is not split over context-parallel ranks"
    if dropout_of(model):
        return "flex_attention has no dropout"
    if size is None or size < LEAST_HEAD_SIZE:
        return f"flex_attention needs heads of at least {LEAST_HEAD_SIZE}, but they have {size or 'no stated size'}"
    return None


def head_size_of(model: nn.Module) -> int | None:
    """Size of a query of one head; None if the model does not state it."""
    if isinstance(model, GPT2LMHeadModel):
        return model.config.n_embd // model.config.n_head
    config: Any = getattr(model, "config", None)
    heads = getattr(config, "num_attention_heads", None)
    size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else None)
    return size if isinstance(size, int) else None


def dropout_of(model: nn.Module) -> float:
    """Probability of dropping an attention weight; 0 if the model does not state it."""
    config: Any = getattr(model, "config", None)
    if isinstance(model, GPT2LMHeadModel):
        return model.config.dropout
    return float(getattr(config, "attention_dropout", None) or getattr(config, "attn_pdrop", None) or 0.0)


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
