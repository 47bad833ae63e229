"""What a forward pass keeps for the backward pass, in bytes: a list of tensors, operation by operation.

The method is that of Korthikanti et al. 2022 ("Reducing Activation Recomputation in Large Transformer Models",
section 4): every operation keeps its inputs. The list follows the models' own code, and a test compares its sum with
what autograd keeps (torch.autograd.graph.saved_tensors_hooks on a CPU, distinct storages, parameters left out): in
fp32, under bf16 autocast and with blocks that are computed again it is the same to the byte, except for dropout and
where a GPU uses wider types than that CPU: the GELU of transformers' GPT-2 under autocast, and the statistics of
layer norms of bf16 weights. What torch.compile keeps is its own choice, and usually less.

Attention is a fused kernel that keeps queries, keys, values, its output and one fp32 number for each query and
head (Dao 2023, FlashAttention-2); the T x T scores never exist.

In the comments: C channels, H heads, D head size, Q = H x D, K of the keys, F inside the feed-forward layers.
"""

from __future__ import annotations

from typing import NamedTuple

from automodel_cli.engine.plan.parameters import Family, ModelShape
from automodel_cli.engine.plan.run_sizes import RunSizes

_FP32 = 4
_INT64 = 8


def activation_bytes(shape: ModelShape, sizes: RunSizes, local_batch_size: int, seq_len: int) -> int | None:
    """Bytes on one rank between the forward and the backward pass; None where attention keeps its scores.

    Args:
        shape: Shape of the model.
        sizes: Precision and layout.
        local_batch_size: Samples of the forward pass.
        seq_len: Tokens of a sample; ranks that share it hold a part each.
    """
    if not shape.has_fused_attention or sizes.has_mask:
        return None
    length = -(-seq_len // sizes.degrees.cp)
    tokens = local_batch_size * length
    block = _bytes_on_rank(_whole_block(shape, sizes), sizes, tokens)
    recomputed = _num_recomputed(shape, sizes)
    blocks = (shape.num_layers - recomputed) * block
    if recomputed:  # what is kept of each, and one at a time whole again
        blocks += recomputed * _bytes_on_rank(_kept_of_block(shape, sizes), sizes, tokens) + block
    mask = length * seq_len * _element_bytes(sizes) * shape.num_layers if sizes.degrees.cp > 1 else 0
    return blocks + mask + _outside_bytes(shape, sizes, tokens, length)


def _num_recomputed(shape: ModelShape, sizes: RunSizes) -> int:
    return shape.num_layers // sizes.recompute_every if sizes.recompute else 0


class _Block(NamedTuple):
    """Bytes of one token in one block, by how tensor-parallel ranks hold them.

    Args:
        between: Whole, unless sequence parallelism splits it.
        whole: Whole in any case.
        inside: Split, with the matrices.
    """

    between: int
    whole: int
    inside: int


def _bytes_on_rank(block: _Block, sizes: RunSizes, tokens: int) -> int:
    tp = sizes.degrees.tp
    between = -(-tokens * block.between // (tp if sizes.distributed.sequence_parallel else 1))
    return tokens * block.whole + between + -(-tokens * block.inside // tp)


def _element_bytes(sizes: RunSizes) -> int:
    """Bytes of one number in matrix products."""
    return 2 if sizes.is_bf16 else _FP32


def _whole_block(shape: ModelShape, sizes: RunSizes) -> _Block:
    return _gpt2_block(shape, sizes) if shape.family.is_gpt2 else _llama_block(shape, sizes)


def _gpt2_block(shape: ModelShape, sizes: RunSizes) -> _Block:
    C, H, F, Q, K = shape.channels, shape.num_heads, shape.mlp_width, shape.q_width, shape.kv_width
    size, stream = _element_bytes(sizes), sizes.weight_bytes
    norms = 2 * (C * stream + 2 * _FP32)  # each its input, mean and deviation
    masks = 2 * C if shape.residual_dropout else 0  # one byte a number
    inputs = 2 * C * size  # of c_attn and of c_fc
    # c_attn's output is one tensor; keys and values gathered from other ranks are further ones.
    gathered = 2 * K * size * sizes.degrees.cp if sizes.degrees.cp > 1 else 0
    attention = (Q + 2 * K) * size + gathered + Q * size + H * _FP32
    # A GELU that is written out keeps x, tanh(...) and 1 + tanh(...), which a GPU computes in fp32 also under
    # autocast, because of the power in it; x / 2 and the output.
    gelu = 2 * size if shape.family is Family.GPT2 else 3 * stream + 2 * size
    return _Block(norms + masks, inputs, attention + F * gelu)


def _llama_block(shape: ModelShape, sizes: RunSizes) -> _Block:
    C, H, F, Q, K = shape.channels, shape.num_heads, shape.mlp_width, shape.q_width, shape.kv_width
    size, stream = _element_bytes(sizes), sizes.weight_bytes
    norms = 2 * (C * (_FP32 + stream) + _FP32)  # each its input in fp32, the normalised input and the root
    # Under autocast q, k and v, and gate and up, each make a narrow copy of the norm's output.
    copies = 5 if size < stream else 2
    attention = 2 * Q * size + 2 * K * size * sizes.degrees.cp + H * _FP32
    if shape.family is Family.QWEN3:  # norms of queries and keys, head by head
        attention += (Q + K) * (_FP32 + size) + (H + shape.num_kv_heads) * _FP32
    return _Block(norms, copies * C * size, attention + 4 * F * size)  # gate, silu(gate), up and their product


def _kept_of_block(shape: ModelShape, sizes: RunSizes) -> _Block:
    """What a block keeps that is computed again: its input, and selectively the outputs of its matrix products."""
    C, F, Q, K = shape.channels, shape.mlp_width, shape.q_width, shape.kv_width
    size, stream = _element_bytes(sizes), sizes.weight_bytes
    if sizes.recompute == "full":
        return _Block(C * stream, 0, 0)
    widths = F if shape.family.is_gpt2 else 2 * F  # gate and up
    attention = Q * size + shape.num_heads * _FP32
    return _Block(C * stream, 2 * C * size, (Q + 2 * K) * size + attention + widths * size)


def _outside_bytes(shape: ModelShape, sizes: RunSizes, tokens: int, length: int) -> int:
    """Before the first block and behind the last, without the logits."""
    C, stream = shape.channels, sizes.weight_bytes
    # The chunked loss keeps the gradient of the head's input instead of the input; it counts with the logits.
    head_input = 0 if sizes.has_chunked_loss else C * _element_bytes(sizes)
    if shape.family.is_gpt2:
        mask = C if shape.embedding_dropout else 0
        return tokens * (_INT64 + mask + C * stream + 2 * _FP32 + head_input) + length * _INT64
    positions = 2 * length * shape.head_size * stream  # cosines and sines
    if _num_recomputed(shape, sizes):  # the positions themselves are an argument of every block that is computed again
        positions += length * _INT64
    return tokens * (_INT64 + C * (_FP32 + stream) + _FP32 + head_input) + positions
