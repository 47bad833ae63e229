"""Cross-entropy over the tokens whose label is not -100.

Shapes: B batch, T sequence, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from automodel_cli.engine.protocols import IGNORED_LABEL
from automodel_cli.errors import ConfigError


class MaskedCrossEntropy:
    """Next-token cross-entropy in nats, computed in fp32 whatever the type of the logits.

    Args:
        z_loss: Weight of the squared log of the softmax's denominator, which keeps logits small.
        label_smoothing: Share of the target that is spread evenly over the vocabulary.

    Raises:
        ConfigError: A number is out of its range.
    """

    def __init__(self, z_loss: float = 0.0, label_smoothing: float = 0.0) -> None:
        check_options(z_loss, label_smoothing)
        self.z_loss = z_loss
        self.label_smoothing = label_smoothing

    def __call__(
        self, logits_BTV: torch.Tensor, labels_BT: torch.Tensor, num_label_tokens: int | None = None
    ) -> torch.Tensor:
        """The summed loss divided by a number of tokens; a scalar.

        Args:
            logits_BTV: Logits before softmax.
            labels_BT: The right next token of each position, already shifted; -100 is not trained on.
            num_label_tokens: The divisor: label tokens of the whole optimisation step, so that losses of
                micro-batches add up to the step's mean. None takes the labels given here.
        """
        logits_NV, labels_N = logits_BTV.flatten(0, 1).float(), labels_BT.flatten()
        total = F.cross_entropy(
            logits_NV, labels_N, ignore_index=IGNORED_LABEL, reduction="sum", label_smoothing=self.label_smoothing
        )
        if self.z_loss:
            squares = logits_NV.logsumexp(dim=1).square()
            total = total + self.z_loss * squares.masked_fill(labels_N == IGNORED_LABEL, 0.0).sum()
        if num_label_tokens is None:
            return total / (labels_BT != IGNORED_LABEL).sum().clamp(min=1)
        return total / num_label_tokens


def check_options(z_loss: float, label_smoothing: float) -> None:
    """Refuses weights that are out of range.

    Raises:
        ConfigError: `z_loss` is below 0, or `label_smoothing` is outside [0, 1).
    """
    if z_loss < 0:
        raise ConfigError(f"z_loss is {z_loss}, but it must be at least 0; 1e-4 is usual")
    if not 0 <= label_smoothing < 1:
        raise ConfigError(f"label_smoothing is {label_smoothing}, but it must be at least 0 and below 1")


class HeadLossSettings(NamedTuple):
    """Arguments of one call that are not differentiated.

    Args:
        rows: Rows of a block.
        z_loss: Weight of the squared log of the softmax's denominator.
        label_smoothing: Share of the target that is spread evenly over the vocabulary.
        num_label_tokens: Divisor of the loss.
        dtype: Type of the products.
        with_gradients: Whether gradients will be asked for.
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
        mean: Mean of all logits of a row, (rows,); None without smoothing.
        settings: Settings of the call.
    """
    smoothing = settings.label_smoothing
    losses = lse - target if mean is None else lse - (1 - smoothing) * target - smoothing * mean
    return losses + settings.z_loss * lse.square() if settings.z_loss else losses
