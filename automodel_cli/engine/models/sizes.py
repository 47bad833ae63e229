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


def _stated(model: nn.Module, name: str) -> int | None:
    """A number from the model's `config`, which our GPT-2 and every Hugging Face model carry."""
    value: Any = getattr(getattr(model, "config", None), name, None)
    return value if isinstance(value, int) else None
