"""Cross-entropy over the tokens that count.

Shapes: B batch, T sequence, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


class MaskedCrossEntropy:
    """Next-token cross-entropy in nats, computed in fp32 whatever the type of the logits.

    Args:
        ignore_index: The label that marks a token as not trained on.
    """

    def __init__(self, ignore_index: int = -100) -> None:
        self.ignore_index = ignore_index

    def __call__(
        self, logits_BTV: torch.Tensor, labels_BT: torch.Tensor, num_label_tokens: int | None = None
    ) -> torch.Tensor:
        """The summed loss divided by a number of tokens; a scalar.

        Args:
            logits_BTV: Logits before softmax.
            labels_BT: The right next token of each position, already shifted.
            num_label_tokens: The divisor: label tokens of the whole optimisation step, so that losses of
                micro-batches add up to the step's mean. None takes the labels given here.
        """
        total = F.cross_entropy(
            logits_BTV.flatten(0, 1).float(), labels_BT.flatten(), ignore_index=self.ignore_index, reduction="sum"
        )
        if num_label_tokens is None:
            return total / (labels_BT != self.ignore_index).sum().clamp(min=1)
        return total / num_label_tokens
