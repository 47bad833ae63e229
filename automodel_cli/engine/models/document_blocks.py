"""Attention within documents that computes only the blocks of pairs which a document has: `flex_attention` of torch.

A mask of every pair costs T x T numbers a sample and rules out the fast kernels. Compiled on a GPU; on a CPU, where
torch has no backward pass for it, it is computed plainly, to compare. No dropout; heads of at least 16 on a GPU.

Shapes: B batch, T sequence, H heads, D head size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

LEAST_HEAD_SIZE = 16


def document_blocks(document_ids_BT: torch.Tensor) -> BlockMask:
    """Which blocks of pairs hold some that see each other, and which pairs in them: those of `document_mask`.

    Args:
        document_ids_BT: Equal within a document, non-decreasing.
    """
    B, T = document_ids_BT.shape

    def sees(b: torch.Tensor, _h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (q >= k) & (document_ids_BT[b, q] == document_ids_BT[b, k])

    create = _kernels(document_ids_BT.device.type)[0]
    blocks: BlockMask = create(sees, B, None, T, T, device=document_ids_BT.device)
    return blocks


def attend_in_blocks(
    q_BHTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, blocks: BlockMask
) -> torch.Tensor:
    """Scaled dot-product attention of the pairs in `blocks`; (B, H, T, D)."""
    y_BHTD: torch.Tensor = _kernels(q_BHTD.device.type)[1](q_BHTD, k_BHTD, v_BHTD, block_mask=blocks)
    return y_BHTD


@functools.cache
def _kernels(device_type: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Makes a block mask, and attends with it. Imported here: a run without documents does not pay for it."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if device_type == "cpu":
        return create_block_mask, flex_attention
    # Uncompiled, both would make the T x T numbers that they are there to save.
    return torch.compile(create_block_mask), torch.compile(flex_attention)
