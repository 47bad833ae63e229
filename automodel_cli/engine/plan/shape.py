"""The sizes of a decoder-only transformer, as far as counting needs them.

Two families: GPT-2 (layer norms, learned positions, one matrix for queries, keys and values) and
Llama (root-mean-square norms, rotary positions, gated feed-forward layers), which Qwen2 and Qwen3
belong to. `model_config.py` reads a shape from a configuration; everything else here computes with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Family(StrEnum):
    """Which tensors a model has, and what its code keeps for the backward pass."""

    GPT2 = "GPT-2"
    HF_GPT2 = "GPT-2 of transformers"
    LLAMA = "Llama"
    QWEN2 = "Qwen2"
    QWEN3 = "Qwen3"

    @property
    def is_gpt2(self) -> bool:
        """Whether blocks are those of GPT-2, in our code or that of transformers."""
        return self in (Family.GPT2, Family.HF_GPT2)


@dataclass(frozen=True)
class ModelShape:
    """A model before it is built.

    Args:
        family: Decides which tensors there are.
        vocab_size: Entries of the vocabulary, V.
        max_positions: Longest sequence; GPT-2 learns a vector for each position.
        channels: Width of the residual stream, C.
        num_layers: Transformer blocks, L.
        num_heads: Heads of the queries, H.
        num_kv_heads: Heads of the keys and of the values; fewer than H share them (GQA).
        head_size: Channels of one head, D; H x D need not be C.
        mlp_width: Channels inside a feed-forward layer.
        is_tied: Whether the output layer is the token embedding.
        qkv_bias: Biases of the projections to queries, keys and values.
        output_bias: Bias of the attention's output projection.
        mlp_bias: Biases of the feed-forward layers.
        norm_bias: Biases of the norms.
        embedding_dropout: Probability; 0 keeps no mask.
        residual_dropout: Probability at the end of each branch; 0 keeps no mask.
        has_fused_attention: Whether attention never holds its T x T scores.
    """

    family: Family
    vocab_size: int
    max_positions: int
    channels: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    mlp_width: int
    is_tied: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    norm_bias: bool
    embedding_dropout: float = 0.0
    residual_dropout: float = 0.0
    has_fused_attention: bool = True

    @property
    def q_width(self) -> int:
        """Channels of all queries, H x D."""
        return self.num_heads * self.head_size

    @property
    def kv_width(self) -> int:
        """Channels of all keys, and of all values."""
        return self.num_kv_heads * self.head_size
