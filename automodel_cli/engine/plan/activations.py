"""What a forward pass keeps for the backward pass, in bytes: a list of tensors, operation by operation.

The method is that of Korthikanti et al. 2022 ("Reducing Activation Recomputation in Large Transformer Models",
section 4): every operation keeps its inputs. The list follows the models' own code, and a test compares its sum with
what autograd keeps (torch.autograd.graph.saved_tensors_hooks on a CPU, distinct storages, parameters left out): in
fp32 and under bf16 autocast it is the same to the byte, except for dropout and for the GELU of transformers' GPT-2
under autocast, which a CPU computes in narrower types than a GPU.

Attention is a fused kernel that keeps queries, keys, values, its output and one fp32 number for each query and
head (Dao 2023, FlashAttention-2); the T x T scores never exist.

In the comments: C channels, H heads, D head size, Q = H x D, K of the keys, F inside the feed-forward layers.
"""

from __future__ import annotations

from automodel_cli.engine.plan.run_sizes import RunSizes
from automodel_cli.engine.plan.shape import Family, ModelShape

_FP32 = 4
_INT64 = 8


def activation_bytes(shape: ModelShape, sizes: RunSizes, local_batch_size: int, seq_len: int) -> int | None:
    """Bytes on one rank between the forward and the backward pass; None where attention keeps its scores.

    Args:
        shape: Of the model.
        sizes: Precision and layout.
        local_batch_size: Samples of the forward pass.
        seq_len: Tokens of a sample; ranks that share it hold a part each.
    """
    if not shape.has_fused_attention or sizes.has_mask:
        return None
    length = -(-seq_len // sizes.degrees.cp)
    tokens = local_batch_size * length
    block = _block_bytes(shape, sizes, tokens)
    if sizes.recomputes:
        # The input of each block stays, and one block at a time is whole again.
        blocks = shape.num_layers * tokens * shape.channels * _FP32 + block
    else:
        blocks = shape.num_layers * block
    mask = length * seq_len * _element_bytes(shape, sizes) * shape.num_layers if sizes.degrees.cp > 1 else 0
    return blocks + mask + _outside_bytes(shape, sizes, tokens, length)


def _element_bytes(shape: ModelShape, sizes: RunSizes) -> int:
    """Bytes of one number in matrix products."""
    return 2 if sizes.is_bf16 else shape.weight_bytes


def _block_bytes(shape: ModelShape, sizes: RunSizes, tokens: int) -> int:
    """One block; what lies between its matrices is held whole by tensor-parallel ranks unless they split it too."""
    tp = sizes.degrees.tp
    parts = _gpt2_block if shape.family.is_gpt2 else _llama_block
    between, inputs, inside = parts(shape, _element_bytes(shape, sizes), sizes.degrees.cp)
    return (
        tokens * inputs
        + -(-tokens * between // (tp if sizes.spread.sequence_parallel else 1))
        + -(-tokens * inside // tp)
    )


def _gpt2_block(shape: ModelShape, size: int, cp: int) -> tuple[int, int, int]:
    """Bytes of one token: between the matrices, inputs of split matrices, inside of them."""
    C, H, F, Q, K = shape.channels, shape.num_heads, shape.mlp_width, shape.q_width, shape.kv_width
    norms = 2 * (C * _FP32 + 2 * _FP32)  # each its input, mean and deviation
    masks = 2 * C if shape.residual_dropout else 0  # one byte a number
    inputs = 2 * C * size  # of c_attn and of c_fc
    # c_attn's output is one tensor; keys and values gathered from other ranks are further ones.
    gathered = 2 * K * size * cp if cp > 1 else 0
    attention = (Q + 2 * K) * size + gathered + Q * size + H * _FP32
    # Of a GELU that is written out: x, tanh(...) and 1 + tanh(...), which a GPU computes in fp32 also under
    # autocast, because of the power in it; x / 2 and the output.
    gelu = 2 * size if shape.family is Family.GPT2 else 3 * _FP32 + 2 * size
    return norms + masks, inputs, attention + F * gelu


def _llama_block(shape: ModelShape, size: int, cp: int) -> tuple[int, int, int]:
    """As `_gpt2_block`."""
    C, H, F, Q, K = shape.channels, shape.num_heads, shape.mlp_width, shape.q_width, shape.kv_width
    norms = 2 * (2 * C * _FP32 + _FP32)  # each its input, the normalised input and the root
    # Under autocast q, k and v, and gate and up, each make a narrow copy of the norm's output.
    copies = 5 if size < shape.weight_bytes else 2
    inputs = copies * C * size
    attention = 2 * Q * size + 2 * K * size * cp + H * _FP32
    if shape.family is Family.QWEN3:  # norms of queries and keys, head by head
        attention += (Q + K) * (_FP32 + size) + (H + shape.num_kv_heads) * _FP32
    return norms, inputs, attention + 4 * F * size  # gate, silu(gate), up and their product


def _outside_bytes(shape: ModelShape, sizes: RunSizes, tokens: int, length: int) -> int:
    """Before the first block and behind the last, without the logits."""
    C = shape.channels
    # The chunked loss keeps the gradient of the head's input instead of the input; it counts with the logits.
    head_input = 0 if sizes.has_chunked_loss else C * _element_bytes(shape, sizes)
    if shape.family.is_gpt2:
        mask = C if shape.embedding_dropout else 0
        return tokens * (_INT64 + mask + C * _FP32 + 2 * _FP32 + head_input) + length * _INT64
    rotations = 2 * length * shape.head_size * _FP32
    return tokens * (_INT64 + 2 * C * _FP32 + _FP32 + head_input) + rotations
