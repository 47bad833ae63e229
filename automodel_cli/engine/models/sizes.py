"""Numbers that a model states about itself."""

from __future__ import annotations

from typing import Any

from torch import nn


def vocab_size_of(model: nn.Module) -> int | None:
    """Entries of the vocabulary; None for a model that does not say."""
    return _stated(model, "vocab_size")


def positions_of(model: nn.Module) -> int | None:
    """Longest sequence; None for a model that does not say."""
    return _stated(model, "n_positions") or _stated(model, "max_position_embeddings")


def layers_of(model: nn.Module) -> int | None:
    """Transformer blocks; None for a model that does not say."""
    return _stated(model, "n_layer") or _stated(model, "num_hidden_layers")


def width_of(model: nn.Module) -> int | None:
    """Width of the hidden states; None for a model that does not say."""
    return _stated(model, "n_embd") or _stated(model, "hidden_size")


def has_experts(model: nn.Module) -> bool:
    """Whether a token passes through a part of the weights only, so that their number is not what it costs."""
    return any(_stated(model, name) for name in ("num_experts", "num_local_experts", "n_routed_experts"))


def _stated(model: nn.Module, name: str) -> int | None:
    """A number from the model's `config`, which our GPT-2 and every Hugging Face model carry."""
    value: Any = getattr(getattr(model, "config", None), name, None)
    return value if isinstance(value, int) else None
