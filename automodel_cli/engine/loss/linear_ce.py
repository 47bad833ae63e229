"""Cross-entropy of a linear head without all of its logits: hidden states times the head, block of rows by block.

The logits (N, V) are the largest tensor of a training step with a vocabulary of any size. Here a
block of rows is multiplied, turned into probabilities and into gradients, and its buffer is used
again for the next block; the backward pass has nothing left to do but to scale. So the peak is
that of one block, whatever the batch. Softmax and sums are in fp32 (fp64 for fp64 inputs);
products are in the type of autocast, as in the head that is replaced.

Of a head that is split over tensor-parallel ranks, each works on its part, and a softmax is that of all parts
(`split_vocabulary.py`): the logits of the whole vocabulary stand on no rank.

Shapes: B batch, T sequence, N = B * T rows, C channels, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate

from automodel_cli.engine.loss.masked_ce import HeadLossSettings, check_options, row_losses
from automodel_cli.engine.loss.products import onednn_is_faster, times_transposed
from automodel_cli.engine.loss.split_vocabulary import VocabularyPart, part_of, split_block_loss
from automodel_cli.engine.protocols import IGNORED_LABEL
from automodel_cli.errors import ConfigError

# Logits of one block on a CPU: 256 rows of a 50k vocabulary, so that a block stays near the caches
# (benchmarks/train.py measures it). A GPU needs more rows to be busy: `logits_per_block`.
_BLOCK_LOGITS_ON_CPU = 256 * 50_304
# Rows of a block that one core turns into probabilities at a time: in fp32 they stay in its second cache from
# one pass to the next. The whole block at once takes four times as long under autocast.
_CACHED_LOGITS = 12 * 50_304


class ChunkedLinearCrossEntropy:
    """Masked next-token cross-entropy that is computed with the head, so that no logits are kept.

    Args:
        chunk_size: Rows of a block; None takes as many as suit the device and the vocabulary.
        z_loss: Weight of the squared log of the softmax's denominator, which keeps logits small.
        label_smoothing: Share of the target that is spread evenly over the vocabulary.

    Raises:
        ConfigError: A number is out of its range.
    """

    logits_per_block = 206_045_184  # 4,096 rows of a vocabulary of 50,304
    least_rows = 64
    takes_split_head = True

    def __init__(self, chunk_size: int | None = None, z_loss: float = 0.0, label_smoothing: float = 0.0) -> None:
        if chunk_size is not None and chunk_size < 1:
            raise ConfigError(f"chunk_size is {chunk_size}, but it must be at least 1, or null")
        check_options(z_loss, label_smoothing)
        self.chunk_size = chunk_size
        self.z_loss = z_loss
        self.label_smoothing = label_smoothing

    def rows_per_block(self, vocab_size: int, device: torch.device) -> int:
        """Rows that are multiplied at a time, for a head of `vocab_size` outputs."""
        if self.chunk_size is not None:
            return self.chunk_size
        logits = self.logits_per_block if device.type == "cuda" else _BLOCK_LOGITS_ON_CPU
        return max(self.least_rows, logits // vocab_size)

    def in_words(self, vocab_size: int, num_parts: int, device: torch.device) -> str:
        """As `DescribesItself.in_words`."""
        rows = self.rows_per_block(-(-vocab_size // num_parts), device)
        how = "chunked, vocabulary-parallel" if num_parts > 1 else "chunked"
        return f"{how} linear cross-entropy, {rows:,} rows at a time"

    def of_hidden(
        self,
        hidden_BTC: torch.Tensor,
        weight_VC: torch.Tensor,
        bias_V: torch.Tensor | None,
        labels_BT: torch.Tensor,
        *,
        num_label_tokens: int,
    ) -> torch.Tensor:
        """The summed loss of `hidden @ weight.T + bias` over `num_label_tokens`; an fp32 scalar.

        Args:
            hidden_BTC: What the head would be given.
            weight_VC: The head's weight; it may be split by its rows over tensor-parallel ranks, and then
                the loss is the same on each, and a distributed tensor if the hidden states are one.
            bias_V: The head's bias, if it has one; split as the weight is.
            labels_BT: The right next token of each position, already shifted; -100 is not trained on.
            num_label_tokens: Label tokens of the whole optimisation step, over all micro-batches.

        Raises:
            ConfigError: The weight is split in another way, or leaves a rank with nothing.
        """
        part, is_wrapped = None, isinstance(hidden_BTC, DTensor)
        if isinstance(weight_VC, DTensor):
            mesh, part = weight_VC.device_mesh, part_of(weight_VC)
            hidden_BTC = _for_every_part(hidden_BTC, mesh)
            weight_VC = weight_VC.to_local()
            bias_V = bias_V.to_local() if isinstance(bias_V, DTensor) else bias_V
        device = hidden_BTC.device
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        else:
            dtype = torch.promote_types(hidden_BTC.dtype, weight_VC.dtype)
        settings = HeadLossSettings(
            # The same on all ranks of a split head: they meet once per block.
            rows=self.rows_per_block(part.largest if part else weight_VC.shape[0], device),
            z_loss=self.z_loss,
            label_smoothing=self.label_smoothing,
            num_label_tokens=num_label_tokens,
            dtype=dtype,
            with_gradients=torch.is_grad_enabled(),
        )
        flat = hidden_BTC.flatten(0, -2)
        loss: torch.Tensor = _LinearCrossEntropy.apply(flat, weight_VC, bias_V, labels_BT.flatten(), settings, part)
        return DTensor.from_local(loss, mesh, [Replicate()], run_check=False) if is_wrapped else loss


def _for_every_part(hidden_BTC: torch.Tensor, mesh: DeviceMesh) -> torch.Tensor:
    """Hidden states, whole on each rank; their gradients are summed over ranks, one summand per vocabulary part."""
    if not isinstance(hidden_BTC, DTensor):
        hidden_BTC = DTensor.from_local(hidden_BTC, mesh, [Replicate()], run_check=False)
    whole: torch.Tensor = hidden_BTC.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])
    return whole


class _Gradients(NamedTuple):
    """Sums of the gradients of the inputs, filled block by block; None where they are not wanted."""

    hidden_NC: torch.Tensor | None
    weight_VC: torch.Tensor | None
    bias_V: torch.Tensor | None


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss and gradients in the forward pass; the backward pass scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NC: torch.Tensor,
        weight_VC: torch.Tensor,
        bias_V: torch.Tensor | None,
        labels_N: torch.Tensor,
        settings: HeadLossSettings,
        part: VocabularyPart | None,
    ) -> torch.Tensor:
        # Grad mode is always off inside an autograd function, so the caller passes whether gradients are wanted.
        wanted = [settings.with_gradients and needed for needed in ctx.needs_input_grad]
        sums_dtype = torch.promote_types(settings.dtype, torch.float32)
        gradients = _Gradients(
            torch.empty_like(hidden_NC) if wanted[0] else None,
            torch.zeros_like(weight_VC, dtype=sums_dtype) if wanted[1] else None,
            torch.zeros_like(bias_V, dtype=sums_dtype) if bias_V is not None and wanted[2] else None,
        )
        with torch.autocast(hidden_NC.device.type, enabled=False):
            total = _all_blocks(hidden_NC, weight_VC, bias_V, labels_N, settings, part, gradients)
        ctx.dtypes = (hidden_NC.dtype, weight_VC.dtype, None if bias_V is None else bias_V.dtype)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        sums = ctx.saved_tensors
        scaled = [
            None if each is None else (each * gradient.to(each.dtype)).to(dtype)
            for each, dtype in zip(sums, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None)


def _all_blocks(
    hidden_NC: torch.Tensor,
    weight_VC: torch.Tensor,
    bias_V: torch.Tensor | None,
    labels_N: torch.Tensor,
    settings: HeadLossSettings,
    part: VocabularyPart | None,
    gradients: _Gradients,
) -> torch.Tensor:
    """The loss over all rows; fills `gradients`."""
    sums_dtype = torch.promote_types(settings.dtype, torch.float32)
    weight = weight_VC.to(settings.dtype)
    num_rows, vocab_size = hidden_NC.shape[0], weight.shape[0]
    rows = min(settings.rows, max(num_rows, 1))
    # Allocated once: a fresh block of 50 MB for every product costs page faults on a CPU.
    logits_buffer = torch.empty(rows, vocab_size, dtype=settings.dtype, device=hidden_NC.device)
    part_rows = rows if hidden_NC.device.type == "cuda" else min(rows, _rows_in_cache(vocab_size))
    # A split softmax reads its logits twice, so they cannot give their memory to the first pass.
    same = settings.dtype == sums_dtype and part is None
    buffer = None if same else torch.empty(part_rows, vocab_size, dtype=sums_dtype, device=hidden_NC.device)
    losses = torch.zeros((), dtype=sums_dtype, device=hidden_NC.device)
    with_gradients = any(each is not None for each in gradients)
    for begin in range(0, num_rows, rows):
        end = min(begin + rows, num_rows)
        hidden, labels = hidden_NC[begin:end].to(settings.dtype), labels_N[begin:end]
        logits = times_transposed(hidden, weight, logits_buffer[: end - begin])
        if bias_V is not None:
            logits.add_(bias_V.to(settings.dtype))
        if part is not None and buffer is not None:
            found = [split_block_loss(logits, labels, buffer, settings, gradients.bias_V, part, with_gradients)]
        else:
            pairs = zip(logits.split(part_rows), labels.split(part_rows), strict=True)
            found = [_rows_loss(*pair, buffer, settings, gradients.bias_V, with_gradients) for pair in pairs]
        for loss, _ in found:
            losses += loss
        if with_gradients:
            factor = torch.cat([each for _, each in found])[:, None]
            _add_block(gradients, hidden, weight, logits, factor, slice(begin, end))
        del logits  # where a library gives fresh memory, two blocks would stand beside each other
    return losses / settings.num_label_tokens


def _rows_in_cache(vocab_size: int) -> int:
    return max(1, _CACHED_LOGITS // vocab_size) * torch.get_num_threads()


def _rows_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    buffer: torch.Tensor | None,
    settings: HeadLossSettings,
    bias_sum_V: torch.Tensor | None,
    with_gradients: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed loss of some rows; turns their logits into gradients without the factor, which is returned (rows,).

    The gradient of a row of logits is `factor * (p - target)`. The factor is applied to the narrow
    (rows, C) sides of the two products and not to the wide block.

    Args:
        logits: (rows, V); used up.
        labels: (rows,).
        buffer: For probabilities in fp32; None where the logits have that type and their memory serves.
        settings: Settings of the call.
        bias_sum_V: Accumulates the gradient of the bias, if it is wanted.
        with_gradients: Whether the gradients are wanted.
    """
    smoothing = settings.label_smoothing
    kept = labels != IGNORED_LABEL
    safe = labels.masked_fill(~kept, 0)[:, None]
    p = logits if buffer is None else buffer[: len(logits)]
    target = logits.gather(1, safe)[:, 0].to(p.dtype)
    mean = logits.mean(dim=1, dtype=p.dtype) if smoothing else None
    lse = _softmax(logits, p)
    loss = torch.where(kept, row_losses(target, lse, mean, settings), 0.0).sum()
    growth = 1 + 2 * settings.z_loss * lse
    factor = torch.where(kept, growth / settings.num_label_tokens, 0.0)
    if with_gradients:
        p.scatter_add_(1, safe, ((smoothing - 1) / growth)[:, None])
        if smoothing:
            p.sub_((smoothing / logits.shape[1] / growth)[:, None])
        if bias_sum_V is not None:
            bias_sum_V.addmv_(p.T, factor)
        if buffer is not None:
            logits.copy_(p)
    return loss, factor


def _softmax(logits: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Fills `p` (rows, V), which may be `logits` itself, with probabilities; returns the log of their denominators."""
    if p.device.type == "cuda":
        # Kernels there read bf16 and write fp32 in one pass, and a pass is what costs.
        largest, place = logits.max(dim=1)
        torch.softmax(logits, dim=1, dtype=p.dtype, out=p)
        of_largest = p.gather(1, place[:, None])[:, 0]
    else:
        if p is not logits:
            p.copy_(logits)
        largest = p.amax(dim=1)
        torch.softmax(p, dim=1, out=p)
        of_largest = p.amax(dim=1)
    # The largest probability is at least 1 / V, so its logarithm is exact where others underflow.
    return largest.to(p.dtype) - of_largest.log()


def _add_block(
    gradients: _Gradients,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    block: torch.Tensor,
    factor: torch.Tensor,
    rows: slice,
) -> None:
    """Adds what a block of `p - target` gives to the gradients; `factor` (rows, 1) makes it that of the loss."""
    if gradients.hidden_NC is not None:
        gradients.hidden_NC[rows] = times_transposed(block, weight.T) * factor.to(block.dtype)
    if gradients.weight_VC is not None:
        scaled = hidden * factor.to(block.dtype)
        if gradients.weight_VC.dtype == block.dtype and not onednn_is_faster():
            gradients.weight_VC.addmm_(block.T, scaled)
        else:
            gradients.weight_VC.add_(times_transposed(block.T, scaled.T))
