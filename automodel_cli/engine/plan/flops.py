"""Floating-point operations of training, by the formula that model FLOPs utilisation (MFU) is defined with."""

from __future__ import annotations

from automodel_cli.engine.observe import peak
from automodel_cli.engine.plan.parameters import count_parameters
from automodel_cli.engine.plan.shape import ModelShape


def flops_per_token(shape: ModelShape, seq_len: int) -> int:
    """Operations of the forward and the backward pass for one token: 6 N + 12 L H D T.

    Source: Chowdhery et al. 2022 (PaLM), appendix B. A product with a matrix of N elements costs a multiplication
    and an addition each, once forward and twice backward; attention multiplies queries with keys and scores with
    values, 2 x 2 x H D T forward, and twice that backward.

    N counts what is a factor of matrix products: the matrices of the blocks and the output layer, also where that is
    the token embedding. Looked-up embeddings, norms and biases are not. As in the source, attention is counted in
    full although a causal kernel skips half of it, and what is computed again for less memory is not counted.

    Args:
        shape: Of the model.
        seq_len: Tokens of a sample, T.
    """
    return peak.flops_per_token(count_parameters(shape).products, shape.num_layers, shape.q_width, seq_len)
