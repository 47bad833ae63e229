"""Attention over sequences that are split among ranks: keys and values are gathered, queries stay.

Every rank holds a contiguous part of each sequence. Inside `AttentionOverRanks`, causal
`scaled_dot_product_attention` gathers the keys and values of all parts up to its own; gradients flow back to
the rank that they belong to, as sums. A gather that is not differentiable gives the right loss once and
trains another model from then on. It works for every model that calls torch's attention, on every backend.

torch's own `context_parallel` has no rule for attention on a CPU, so it could not be tested here.

Shapes: B batch, H heads, T sequence, t this rank's part of it, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from automodel_cli.errors import ConfigError


class AttentionOverRanks(TorchFunctionMode):
    """A context in which causal self-attention sees the whole sequence.

    Args:
        group: The ranks that share a sequence, in its order.
        rank: Place of this rank in the group.
    """

    def __init__(self, group: dist.ProcessGroup, rank: int) -> None:
        super().__init__()
        self._group = group
        self._rank = rank

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Replaces attention; everything else is what it was."""
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **others: Any,
    ) -> torch.Tensor:
        """Queries (B, H, t, D) over keys and values of all positions up to theirs -> (B, H, t, D)."""
        if not is_causal or attn_mask is not None:
            raise ConfigError(
                "this model's attention is not plainly causal, and context parallelism splits only causal attention",
                help="set distributed.cp_size to 1; tensor parallelism also divides the memory of attention",
            )
        t = query.shape[2]
        seen = (self._rank + 1) * t
        key, value = (_GatherSequence.apply(part, self._group)[:, :, :seen] for part in (key, value))
        mask_tT = torch.ones(t, seen, dtype=torch.bool, device=query.device).tril(diagonal=seen - t)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask_tT, dropout_p=dropout_p, **others)


class _GatherSequence(torch.autograd.Function):
    """Joins the parts of a sequence; backward, each rank gets the sum of all gradients of its own part."""

    @staticmethod
    def forward(ctx: Any, part_BHtD: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        """(B, H, t, D) of each rank -> (B, H, T, D)."""
        ctx.group = group
        parts = [torch.empty_like(part_BHtD, memory_format=torch.contiguous_format) for _ in range(group.size())]
        dist.all_gather(parts, part_BHtD.contiguous(), group=group)
        return torch.cat(parts, dim=2)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        """(B, H, T, D) -> (B, H, t, D), summed over the ranks."""
        grad_BHTD = grads[0].contiguous()
        dist.all_reduce(grad_BHTD, group=ctx.group)
        return grad_BHTD.chunk(ctx.group.size(), dim=2)[dist.get_rank(ctx.group)], None
