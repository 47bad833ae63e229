"""Activation checkpointing: a block keeps its input and computes the rest again in the backward pass.

The names of parameters stay as they are, and gradients stay the same bits: what is computed twice is
the same computation, with the random numbers of the first time. A model without blocks is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from automodel_cli.engine.distributed.module_tree import transformer_blocks
from automodel_cli.errors import ConfigError

_aten = torch.ops.aten
# Products of matrices and attention are nearly all the time of a block; what lies between them (norms,
# activations, masks) is nearly all the memory and cheap to compute again.
KEPT_PRODUCTS = frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,
        _aten.bmm.default,
        _aten.baddbmm.default,
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
    }
)


def recompute_activations(model: nn.Module, mode: str, every: int = 1) -> str:
    """Makes blocks of a model compute their activations again, in place; returns which, in words.

    Args:
        model: Its blocks are the largest list of modules of one class.
        mode: `full` (a block keeps only its input) or `selective` (it keeps its products of
            matrices and its attention too).
        every: Recompute one block in `every`.

    Raises:
        ConfigError: The model has no blocks.
    """
    blocks = transformer_blocks(model)
    if not blocks:
        raise ConfigError(
            f"activation_checkpointing.mode is {mode}, but {type(model).__name__} has no list of blocks",
            help="set it to null; it works with a model that keeps its blocks in one nn.ModuleList",
        )
    contexts = {"context_fn": _keeping_products} if mode == "selective" else {}
    chosen = blocks[every - 1 :: every]
    for block in chosen:
        block.__dict__["forward"] = _recomputed(block.forward, contexts)
    return f"{mode}, {len(chosen)} of {len(blocks)} blocks"


def _recomputed(forward: Callable[..., Any], contexts: dict[str, Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **contexts, **kwargs)

    return recomputed


def _keeping_products() -> tuple[Any, Any]:
    def policy(_context: Any, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if operation in KEPT_PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE

    contexts: tuple[Any, Any] = create_selective_checkpoint_contexts(policy)
    return contexts
