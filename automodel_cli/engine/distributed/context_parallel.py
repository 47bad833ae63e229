"""Attention over sequences that are split among ranks, for every model that calls torch's attention.

Every rank holds a contiguous part of each sequence. Inside `AttentionOverRanks`, causal
`scaled_dot_product_attention` uses torch's ring on GPUs where a flash kernel supports it (ring_attention.py), after
a test of the ring on this machine. Elsewhere it gathers the keys and values of all parts up to its own, with a gather
that is differentiable: gradients are summed on the rank that owns the part. Without that, the first loss would be
right and the training wrong.

Shapes: B batch, H heads, T sequence, t this rank's part of it, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from automodel_cli.engine.distributed.ring_attention import ring_attention, ring_fault, ring_obstacle
from automodel_cli.errors import ConfigError


class AttentionOverRanks(TorchFunctionMode):
    """A context in which causal self-attention sees the whole sequence.

    Args:
        group: The ranks that share a sequence, in its order.
        rank: Number of this rank in the group.
        device: Where the ranks compute; on a GPU the ring is tested here, which is a collective.
    """

    def __init__(self, group: dist.ProcessGroup, rank: int, device: torch.device | None = None) -> None:
        super().__init__()
        self._group = group
        self._rank = rank
        self._ring_fault: str | None = None
        if device is not None and device.type == "cuda":
            self._ring_fault = ring_fault(self._over_gathered, group, device)

    def in_words(self, device: torch.device, dtype: torch.dtype, head_size: int | None, dropout_p: float) -> str:
        """How attention of this kind is computed, and why not in the faster way.

        Args:
            device: Where it is computed.
            dtype: Type of queries, keys and values.
            head_size: D; None where a model does not state it.
            dropout_p: Probability of dropping an attention weight.
        """
        obstacle = self._obstacle(device.type, dtype, head_size, dropout_p)
        if obstacle is None:
            return "flash attention round a ring"
        how = "gathered keys and values"
        return f"{how}: SLOW, as {obstacle}" if device.type == "cuda" else how

    def _obstacle(self, device_type: str, dtype: torch.dtype, head_size: int | None, dropout_p: float) -> str | None:
        obstacle = ring_obstacle(device_type, dtype, head_size, dropout_p)
        return obstacle or (f"the ring fails here: {self._ring_fault}" if self._ring_fault else None)

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Replaces attention, and leaves every other function as it is."""
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
        device = query.device.type
        if torch.is_autocast_enabled(device):  # autocast acts inside of torch's attention, so after this
            query, key, value = (part.to(torch.get_autocast_dtype(device)) for part in (query, key, value))
        if self._obstacle(device, query.dtype, query.shape[3], dropout_p) is None:
            return ring_attention(query, key, value, self._group, others.get("scale"))
        return self._over_gathered(query, key, value, dropout_p=dropout_p, **others)

    def _over_gathered(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **others: Any
    ) -> torch.Tensor:
        """Queries (B, H, t, D) over the keys and values of this rank and those before it -> (B, H, t, D)."""
        t = query.shape[2]
        seen = (self._rank + 1) * t
        key, value = (_GatherSequence.apply(part, self._group)[:, :, :seen] for part in (key, value))
        mask_tT = torch.ones(t, seen, dtype=torch.bool, device=query.device).tril(diagonal=seen - t)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask_tT, **others)


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
