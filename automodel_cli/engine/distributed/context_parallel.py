"""Attention over sequences that are split among ranks, for every model that calls torch's attention.

Every rank holds a contiguous part of each sequence. Inside `AttentionOverRanks`, causal
`scaled_dot_product_attention` uses torch's ring on GPUs where a flash kernel supports it, after a test of the ring on
this machine. Elsewhere it gathers the keys and values of all parts up to its own, with a gather that is
differentiable: gradients are summed on the rank that owns the part. Without that, the first loss would be right and
the training wrong.

The ring is torch's (`torch.distributed.tensor.experimental`, after Liu et al. 2023, "Ring Attention with Blockwise
Transformers"): keys and values go round, queries stay. Every rank attends to the keys and values that it holds, passes
them on, and merges the results by their log-sum-exp, so no rank holds a mask or the scores. Torch has no kernel of the
ring for CPUs; the one here lets tests run without a GPU.

Shapes: B batch, H heads, T sequence, t this rank's part of it, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from automodel_cli.errors import ConfigError

_LARGEST_HEAD = 256  # of the flash kernels of torch 2.11 to 2.13
_HEAD_STEP = 8
_aten = torch.ops.aten
# Forward and backward, by type of device.
_KERNELS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "cuda": (_aten._scaled_dot_product_flash_attention, _aten._scaled_dot_product_flash_attention_backward.default),
    "cpu": (
        _aten._scaled_dot_product_flash_attention_for_cpu,
        _aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
    ),
}


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


def ring_obstacle(device_type: str, dtype: torch.dtype, head_size: int | None, dropout_p: float = 0.0) -> str | None:
    """Why attention of this kind is not computed by the ring; None where it is.

    Args:
        device_type: Device of queries, keys and values.
        dtype: Type of queries, keys and values.
        head_size: D; None where a model does not state it, so that it is not checked.
        dropout_p: Probability of dropping an attention weight.
    """
    if device_type != "cuda":
        return "the ring of torch has no rule for CPUs"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"flash attention takes bf16, not {str(dtype).removeprefix('torch.')}"
    if head_size is not None and (head_size > _LARGEST_HEAD or head_size % _HEAD_STEP):
        return f"flash attention takes heads of multiples of {_HEAD_STEP} up to {_LARGEST_HEAD}, not {head_size}"
    if dropout_p:
        return "ranks of the ring would drop different weights in the backward pass"
    return None


@torch.compiler.disable
def ring_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group: dist.ProcessGroup, scale: float | None = None
) -> torch.Tensor:
    """Causal attention of this rank's queries over the whole sequence, whose parts are in the order of the ranks.

    Args:
        query: (B, H, t, D).
        key: (B, H, t, D), or fewer heads, each for as many queries.
        value: As `key`.
        group: The ranks that share a sequence.
        scale: Factor on the scores; None is 1/sqrt(D).

    Returns:
        (B, H, t, D).
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    result: torch.Tensor = _Ring.apply(query, key, value, group, scale)
    return result


def ring_fault(
    gathered: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    group: dist.ProcessGroup,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
) -> str | None:
    """What is wrong with the ring on this machine, found by comparing it with another method; None for nothing.

    Collective: every rank of the group must call this. All get the same answer.

    Args:
        gathered: Another attention of (B, H, t, D), known to be right.
        group: The ranks that share a sequence.
        device: Where to compute.
        dtype: Type of queries, keys and values.
    """
    generator = torch.Generator().manual_seed(dist.get_rank(group))
    parts = [torch.randn(1, 2, 64, 64, generator=generator).to(device, dtype) for _ in range(4)]
    found: list[list[torch.Tensor]] = []
    fault = None
    try:
        for attend in (lambda q, k, v: ring_attention(q, k, v, group), gathered):
            q, k, v = (part.clone().requires_grad_() for part in parts[:3])
            out = attend(q, k, v)
            out.backward(parts[3])
            found.append([out.detach(), *(leaf.grad for leaf in (q, k, v))])  # type: ignore[list-item]
        largest = max(
            float((ours - theirs).abs().max() / theirs.abs().max()) for ours, theirs in zip(*found, strict=True)
        )
        # Rounding errors of the type, as they add up in sums of this length.
        if not largest < 16 * torch.finfo(dtype).eps:
            fault = f"it differs from attention over gathered keys by {largest:.1e}"
    except (ImportError, AttributeError, RuntimeError, TypeError, NotImplementedError) as error:
        fault = f"it raised {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    any_fault = torch.tensor(int(fault is not None), device=device)
    dist.all_reduce(any_fault, op=dist.ReduceOp.MAX, group=group)
    return (fault or "it fails on another rank") if int(any_fault) else None


class _Ring(torch.autograd.Function):
    """Torch's forward and backward passes around the ring."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        group: dist.ProcessGroup,
        scale: float | None,
    ) -> torch.Tensor:
        """Keeps the result and its log-sum-exp, and no tensors of other ranks."""
        with _in_order_of_ranks() as ring:
            out, logsumexp, *rest = ring._templated_ring_attention(
                group,
                2,
                _KERNELS[query.device.type][0],
                query=query,
                key=key,
                value=value,
                is_causal=True,
                dropout_p=0.0,
                scale=scale,
            )
        ctx.group, ctx.scale = group, scale
        ctx.rest = rest if query.device.type == "cuda" else []
        ctx.save_for_backward(query, key, value, out, logsumexp)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """(B, H, t, D) -> the same for queries, and for this rank's keys and values the sums over all ranks."""
        query, key, value, out, logsumexp = ctx.saved_tensors
        names = ("cum_seq_q", "cum_seq_k", "max_q", "max_k", "philox_seed", "philox_offset")
        others = dict(zip(names, ctx.rest, strict=False))
        with _in_order_of_ranks() as ring:
            of_query, of_key, of_value, *_ = ring._templated_ring_attention_backward(
                ctx.group,
                2,
                _KERNELS[query.device.type][1],
                grad_out=grads[0].contiguous(),
                grad_out_name="grad_out",
                query=query,
                key=key,
                value=value,
                out=out,
                logsumexp=logsumexp,
                is_causal=True,
                dropout_p=0.0,
                scale=ctx.scale,
                **others,
            )
        return of_query, of_key, of_value, None, None


@contextmanager
def _in_order_of_ranks() -> Iterator[Any]:
    """Torch's ring, set to contiguous parts of a sequence instead of load-balanced ones."""
    from torch.distributed.tensor.experimental._context_parallel import _attention as ring

    options: Any = ring._cp_options
    before = options.enable_load_balance
    options.enable_load_balance = False
    try:
        yield ring
    finally:
        options.enable_load_balance = before
