"""Bytes that a rank sends per optimisation step in each layout: arithmetic.

A ring over n ranks sends each byte of a gathered or scattered tensor (n - 1) / n times, and of an all-reduced one twice
that. Not counted: the padding of rows that ranks do not divide, what agrees on a step (some 100 bytes), and for tensor
parallelism the numbers per token of the loss. `benchmarks/scaling.py` measures all of it against these formulas.
"""

from __future__ import annotations

from typing import NamedTuple


class Traffic(NamedTuple):
    """Bytes that one rank sends in one step.

    Args:
        gathered: To let others have what this rank holds.
        reduced: For sums.
    """

    gathered: float
    reduced: float

    @property
    def total(self) -> float:
        """Both."""
        return self.gathered + self.reduced


def ring_bytes(payload: float, ranks: int) -> float:
    """What a rank sends for one all-gather to, or reduce-scatter of, `payload` bytes; an all-reduce is both.

    >>> ring_bytes(800, 4)
    600.0
    """
    return payload * (ranks - 1) / ranks


def of_ddp(parameters: int, ranks: int, *, grad_bytes: int = 4) -> Traffic:
    """One sum of all gradients per step, whatever the accumulation.

    >>> of_ddp(1000, 2).total
    4000.0
    """
    return Traffic(0.0, 2 * ring_bytes(parameters * grad_bytes, ranks))


def of_fsdp2(
    parameters: int,
    ranks: int,
    *,
    outside_blocks: int = 0,
    accumulation: int = 1,
    reshards: bool = True,
    defers_sync: bool = True,
    replicas: int = 1,
    weight_bytes: int = 4,
    grad_bytes: int = 4,
) -> Traffic:
    """Blocks gathered for the forward and again for the backward pass; gradients scattered once per step.

    Args:
        parameters: All of them.
        ranks: That one copy of the model is sharded over.
        outside_blocks: Those parameters that are gathered only once per micro-batch: embeddings, head, last norm.
        accumulation: Micro-batches of a step on one rank.
        reshards: Whether blocks are freed after their forward pass.
        defers_sync: Whether gradients are summed once per step, not once per micro-batch.
        replicas: Copies of the model, of HSDP.
        weight_bytes: Bytes of a gathered weight.
        grad_bytes: Bytes of a gradient that is summed.

    >>> of_fsdp2(1000, 2).total, of_fsdp2(1000, 2, reshards=False).total
    (6000.0, 4000.0)
    >>> of_fsdp2(1000, 2, accumulation=4), of_fsdp2(1000, 2, replicas=2).reduced
    (Traffic(gathered=16000.0, reduced=2000.0), 4000.0)
    """
    gathers = 2 * parameters - outside_blocks if reshards else parameters
    sums = 1 if defers_sync else accumulation
    scattered = sums * ring_bytes(parameters * grad_bytes, ranks)
    across = 2 * ring_bytes(parameters / ranks * grad_bytes, replicas)
    return Traffic(accumulation * ring_bytes(gathers * weight_bytes, ranks), scattered + sums * across)


def of_tensor_parallel(
    layers: int, samples: int, seq_len: int, channels: int, ranks: int, *, accumulation: int = 1, dtype_bytes: int = 4
) -> Traffic:
    """Two sums of the activations (B, T, C) of a block in each direction, one at the embedding and one at the head.

    >>> of_tensor_parallel(2, 1, 10, 8, 2).total == (4 * 2 + 2) * 2 * (10 * 8 * 4) / 2
    True
    """
    activations = samples * seq_len * channels * dtype_bytes
    return Traffic(0.0, accumulation * (4 * layers + 2) * 2 * ring_bytes(activations, ranks))


def of_context_parallel(
    layers: int, samples: int, seq_len: int, channels: int, ranks: int, *, accumulation: int = 1, dtype_bytes: int = 4
) -> Traffic:
    """Keys and values (B, T, C) of the whole sequence in each block, and the sum of their gradients.

    The weights are then summed, or gathered, as over data-parallel ranks: that comes on top.

    >>> of_context_parallel(2, 1, 10, 8, 2)
    Traffic(gathered=640.0, reduced=1280.0)
    """
    whole = ring_bytes(2 * samples * seq_len * channels * dtype_bytes, ranks)
    return Traffic(accumulation * layers * whole, accumulation * layers * 2 * whole)
