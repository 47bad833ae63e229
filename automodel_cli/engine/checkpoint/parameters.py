"""Counts the parameters of a model by component, from tensor names and shapes alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from automodel_cli.engine.checkpoint.tensor_header import TensorInfo

# The first match wins: a norm inside of attention (`self_attn.q_norm`) is a norm, and only what
# is in no block can be the head.
_COMPONENTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("norm", ("norm", "ln_", "ln1", "ln2", "lnf")),
    ("attention", ("attn", "attention")),
    ("mlp", ("mlp", "ffn", "feed_forward", "experts", "moe")),
    ("embedding", ("wte", "wpe", "embed_tokens", "embeddings", "embed_in", "word_embedding")),
    ("head", ("lm_head", "embed_out")),
)
_SHOWN = ("embedding", "attention", "mlp", "norm", "head", "other")


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model.

    Args:
        total: All stored parameters; tied ones are stored, and counted, once.
        by_component: `embedding`, `attention`, `mlp`, `norm`, `head`, `other`, those that occur.
        by_dtype: The same parameters by their type, as safetensors names it.
        num_tensors: How many tensors hold them.
        tied_head: The output layer is the token embedding.
    """

    total: int
    by_component: dict[str, int]
    by_dtype: dict[str, int]
    num_tensors: int
    tied_head: bool


def count_parameters(tensors: Mapping[str, TensorInfo], model_config: Mapping[str, Any] | None) -> ParameterCount:
    """Counts what a weights file holds.

    Args:
        tensors: Its tensors by name.
        model_config: Contents of `config.json`; it tells whether a missing head is tied.
    """
    components: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    for name, tensor in tensors.items():
        components[component_of(name)] += tensor.num_elements
        dtypes[tensor.dtype] += tensor.num_elements
    return ParameterCount(
        total=components.total(),
        by_component={name: components[name] for name in _SHOWN if name in components},
        by_dtype=dict(dtypes.most_common()),
        num_tensors=len(tensors),
        tied_head="head" not in components and bool((model_config or {}).get("tie_word_embeddings")),
    )


def component_of(name: str) -> str:
    """The component that a parameter belongs to, by the names that models commonly use.

    >>> component_of("transformer.h.0.attn.c_attn.weight"), component_of("model.layers.0.input_layernorm.weight")
    ('attention', 'norm')
    """
    lower = name.lower()
    for component, marks in _COMPONENTS:
        if any(mark in lower for mark in marks):
            return component
    return "other"
