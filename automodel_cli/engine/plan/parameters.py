"""Shape of a decoder-only transformer, its parameters by name and shape, and the FLOPs that a token costs.

Two families: GPT-2 (layer norms, learned positions, one matrix for queries, keys and values) and Llama
(root-mean-square norms, rotary positions, gated feed-forward layers), which Qwen2 and Qwen3 belong to.
`model_config.py` reads a shape from a configuration. The names of the parameters are the model's own, so that a test
can compare the list with `named_parameters()` of a real model, tensor by tensor; the count is then exact by
construction. A block's tensors are listed once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from automodel_cli.engine.observe import speed
from automodel_cli.engine.plan.run_sizes import RunSizes


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


class Part(StrEnum):
    """Where in the model a parameter is."""

    EMBEDDING = "embedding"
    POSITIONS = "positions"
    BLOCKS = "blocks"
    NORM = "norm"
    HEAD = "head"


@dataclass(frozen=True)
class ParameterTensor:
    """One parameter, or the same one of every block.

    Args:
        name: Name in the model; `*` stands for the number of the block.
        shape: As the model holds it.
        part: Where it is.
        copies: Blocks that have one.
        tp_dim: The dimension that tensor parallelism splits; None is held whole by every rank.
        is_product: Whether it is a factor of matrix products: norms, biases and looked-up embeddings are not.
    """

    name: str
    shape: tuple[int, ...]
    part: Part
    copies: int = 1
    tp_dim: int | None = None
    is_product: bool = False

    @property
    def num_elements(self) -> int:
        """Elements of all copies together."""
        return self.copies * math.prod(self.shape)


@dataclass(frozen=True)
class ParameterCounts:
    """Trainable numbers of a model; a tied matrix counts once, as `embedding`.

    Args:
        total: All.
        embedding: The token embedding.
        positions: Learned positions.
        blocks: All transformer blocks.
        norm: The norm behind the last block.
        head: The output layer, where it has a matrix of its own.
        products: Those that are factors of matrix products; a tied embedding is one, as the output layer.
    """

    total: int
    embedding: int
    positions: int
    blocks: int
    norm: int
    head: int
    products: int


@dataclass(frozen=True)
class CountedModel:
    """A model as a plan needs it, counted by formulas or by a trace of the built model.

    Args:
        kind: The family or the class, for users.
        tensors: Every parameter; those of equal blocks once.
        num_layers: Transformer blocks.
        vocab_size: Entries of the vocabulary, V.
        channels: Width of the residual stream, C.
        is_tied: Whether the output layer is the token embedding.
        flops_per_token: Forward and backward, by the tokens of a sample.
        activation_bytes: Bytes on one rank between the forward and the backward pass, by the sizes of the run, the
            samples of a forward pass and the tokens of a sample; None where that is not known.
        is_traced: Whether it was counted by a trace.
    """

    kind: str
    tensors: Sequence[ParameterTensor]
    num_layers: int
    vocab_size: int
    channels: int
    is_tied: bool
    flops_per_token: Callable[[int], int]
    activation_bytes: Callable[[RunSizes, int, int], int | None]
    is_traced: bool = False


def parameter_tensors(shape: ModelShape) -> list[ParameterTensor]:
    """All parameters, in the order of the model.

    Source: Radford et al. 2019 for GPT-2; Touvron et al. 2023, Yang et al. 2024 and Yang et al. 2025 for
    Llama, Qwen2 and Qwen3, in the form that transformers gives them.
    """
    return list(_gpt2(shape) if shape.family.is_gpt2 else _llama(shape))


def count_parameters(tensors: Sequence[ParameterTensor]) -> ParameterCounts:
    """Trainable numbers of a model by part.

    >>> gpt2 = ModelShape(Family.GPT2, 50257, 1024, 768, 12, 12, 12, 64, 3072, True, True, True, True, True)
    >>> count_parameters(parameter_tensors(gpt2)).total
    124439808
    """
    by_part = {part: sum(t.num_elements for t in tensors if t.part is part) for part in Part}
    return ParameterCounts(
        total=sum(by_part.values()),
        embedding=by_part[Part.EMBEDDING],
        positions=by_part[Part.POSITIONS],
        blocks=by_part[Part.BLOCKS],
        norm=by_part[Part.NORM],
        head=by_part[Part.HEAD],
        products=sum(tensor.num_elements for tensor in tensors if tensor.is_product),
    )


def _gpt2(shape: ModelShape) -> Iterator[ParameterTensor]:
    C, V, inner = shape.channels, shape.vocab_size, shape.mlp_width
    # transformers keeps the matrices of the blocks as the original code did: inputs before outputs.
    is_transposed = shape.family is not Family.GPT2
    yield ParameterTensor(
        "transformer.wte.weight", (V, C), Part.EMBEDDING, tp_dim=0 if shape.is_tied else None, is_product=shape.is_tied
    )
    yield ParameterTensor("transformer.wpe.weight", (shape.max_positions, C), Part.POSITIONS)

    def linear(
        name: str, inputs: int, outputs: int, has_bias: bool, *, splits_outputs: bool
    ) -> Iterator[ParameterTensor]:
        size = (inputs, outputs) if is_transposed else (outputs, inputs)
        dim = int(splits_outputs == is_transposed)
        yield _of_block(f"transformer.h.*.{name}.weight", size, shape, tp_dim=dim, is_product=True)
        if has_bias:
            yield _of_block(f"transformer.h.*.{name}.bias", (outputs,), shape, tp_dim=0 if splits_outputs else None)

    def norm(name: str) -> Iterator[ParameterTensor]:
        for key in ("weight", "bias") if shape.norm_bias else ("weight",):
            yield _of_block(f"transformer.h.*.{name}.{key}", (C,), shape)

    yield from norm("ln_1")
    yield from linear("attn.c_attn", C, 3 * C, shape.qkv_bias, splits_outputs=True)
    yield from linear("attn.c_proj", C, C, shape.output_bias, splits_outputs=False)
    yield from norm("ln_2")
    yield from linear("mlp.c_fc", C, inner, shape.mlp_bias, splits_outputs=True)
    yield from linear("mlp.c_proj", inner, C, shape.mlp_bias, splits_outputs=False)
    for key in ("weight", "bias") if shape.norm_bias else ("weight",):
        yield ParameterTensor(f"transformer.ln_f.{key}", (C,), Part.NORM)
    yield from _head(shape)


def _llama(shape: ModelShape) -> Iterator[ParameterTensor]:
    C, V, Q, KV, inner = shape.channels, shape.vocab_size, shape.q_width, shape.kv_width, shape.mlp_width
    yield ParameterTensor(
        "model.embed_tokens.weight",
        (V, C),
        Part.EMBEDDING,
        tp_dim=0 if shape.is_tied else None,
        is_product=shape.is_tied,
    )

    def linear(
        name: str, inputs: int, outputs: int, has_bias: bool, *, splits_outputs: bool
    ) -> Iterator[ParameterTensor]:
        dim = 0 if splits_outputs else 1
        yield _of_block(f"model.layers.*.{name}.weight", (outputs, inputs), shape, tp_dim=dim, is_product=True)
        if has_bias:
            yield _of_block(f"model.layers.*.{name}.bias", (outputs,), shape, tp_dim=0 if splits_outputs else None)

    yield from linear("self_attn.q_proj", C, Q, shape.qkv_bias, splits_outputs=True)
    yield from linear("self_attn.k_proj", C, KV, shape.qkv_bias, splits_outputs=True)
    yield from linear("self_attn.v_proj", C, KV, shape.qkv_bias, splits_outputs=True)
    yield from linear("self_attn.o_proj", Q, C, shape.output_bias, splits_outputs=False)
    if shape.family is Family.QWEN3:
        yield _of_block("model.layers.*.self_attn.q_norm.weight", (shape.head_size,), shape)
        yield _of_block("model.layers.*.self_attn.k_norm.weight", (shape.head_size,), shape)
    yield from linear("mlp.gate_proj", C, inner, shape.mlp_bias, splits_outputs=True)
    yield from linear("mlp.up_proj", C, inner, shape.mlp_bias, splits_outputs=True)
    yield from linear("mlp.down_proj", inner, C, shape.mlp_bias, splits_outputs=False)
    yield _of_block("model.layers.*.input_layernorm.weight", (C,), shape)
    yield _of_block("model.layers.*.post_attention_layernorm.weight", (C,), shape)
    yield ParameterTensor("model.norm.weight", (C,), Part.NORM)
    yield from _head(shape)


def _head(shape: ModelShape) -> Iterator[ParameterTensor]:
    if not shape.is_tied:
        size = (shape.vocab_size, shape.channels)
        yield ParameterTensor("lm_head.weight", size, Part.HEAD, tp_dim=0, is_product=True)


def _of_block(
    name: str, size: tuple[int, ...], shape: ModelShape, *, tp_dim: int | None = None, is_product: bool = False
) -> ParameterTensor:
    return ParameterTensor(name, size, Part.BLOCKS, shape.num_layers, tp_dim, is_product)


def flops_per_token(shape: ModelShape, seq_len: int) -> int:
    """Operations of the forward and the backward pass for one token: 6 N + 12 L H D T.

    Source: Chowdhery et al. 2022 (PaLM), appendix B. A product with a matrix of N elements costs a multiplication
    and an addition each, once forward and twice backward; attention multiplies queries with keys and scores with
    values, 2 x 2 x H D T forward, and twice that backward.

    N counts what is a factor of matrix products: the matrices of the blocks and the output layer, also where that is
    the token embedding. Looked-up embeddings, norms and biases are not. As in the source, attention is counted in
    full although a causal kernel skips half of it, and what is computed again for less memory is not counted.

    Args:
        shape: Shape of the model.
        seq_len: Tokens of a sample, T.
    """
    products = count_parameters(parameter_tensors(shape)).products
    return speed.flops_per_token(products, shape.num_layers, shape.q_width, seq_len)
