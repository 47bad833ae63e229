"""What a model states about itself: its sizes, and whether it is one of transformers."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn


class Experts(NamedTuple):
    """Experts of a layer, and how many of them a token is sent to; None where the model does not say."""

    number: int
    per_token: int | None


def is_hugging_face(model: nn.Module) -> bool:
    """Whether transformers defines the model; asked by name, since importing it only to ask is slow."""
    return any(base.__name__ == "PreTrainedModel" for base in type(model).__mro__)


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


def attention_width_of(model: nn.Module) -> int | None:
    """Width of the queries of all heads together; where nothing else is stated, that of the hidden states."""
    heads, size = _stated(model, "num_attention_heads"), _stated(model, "head_dim")
    return heads * size if heads is not None and size is not None else width_of(model)


def experts_of(model: nn.Module) -> Experts | None:
    """The experts of a model whose tokens pass through a part of the weights only; None for any other."""
    for name in ("num_experts", "num_local_experts", "n_routed_experts"):
        number = _stated(model, name)
        if number:
            return Experts(number, _stated(model, "num_experts_per_tok"))
    return None


def _stated(model: nn.Module, name: str) -> int | None:
    """A number from the model's `config`, which our GPT-2 and every Hugging Face model carry."""
    value: Any = getattr(getattr(model, "config", None), name, None)
    return value if isinstance(value, int) else None
