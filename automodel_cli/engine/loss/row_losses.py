"""What the chunked losses of a linear head share: the settings of one call, and the loss of a row from its sums."""

from __future__ import annotations

from typing import NamedTuple

import torch


class HeadLossSettings(NamedTuple):
    """What one call does not differentiate.

    Args:
        rows: Of a block.
        z_loss: Weight of the squared log of the softmax's denominator.
        label_smoothing: Share of the target that is spread evenly over the vocabulary.
        num_label_tokens: Divisor of the loss.
        dtype: Of the products.
        with_gradients: Whether anybody is going to ask for them.
    """

    rows: int
    z_loss: float
    label_smoothing: float
    num_label_tokens: int
    dtype: torch.dtype
    with_gradients: bool


def row_losses(
    target: torch.Tensor, lse: torch.Tensor, mean: torch.Tensor | None, settings: HeadLossSettings
) -> torch.Tensor:
    """-log p of the label, smoothed, plus the z-loss; one number a row.

    Args:
        target: Logit of the label, (rows,).
        lse: Log of the softmax's denominator, (rows,).
        mean: Of all logits of a row, (rows,); None without smoothing.
        settings: Of the call.
    """
    smoothing = settings.label_smoothing
    losses = lse - target if mean is None else lse - (1 - smoothing) * target - smoothing * mean
    return losses + settings.z_loss * lse.square() if settings.z_loss else losses
