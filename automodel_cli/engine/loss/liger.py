"""Liger's fused linear cross-entropy as a loss of amcli: `loss_fn: {_target_: ...LigerLinearCrossEntropy}`, on CUDA.

Chosen by name only, never in place of another loss and never replaced by one: where it cannot run, it is refused.
It asks the device for numbers in every micro-batch, for which the device has to finish first; amcli's own
`ChunkedLinearCrossEntropy`, the default, does not. Gradients of the head are summed in fp32.

Method: Hsu et al. 2024, "Liger Kernel: Efficient Triton Kernels for LLM Training".
"""

from __future__ import annotations

import importlib.util

import torch
from torch.distributed.tensor import DTensor

from automodel_cli.engine.loss.masked_ce import check_options
from automodel_cli.engine.protocols import IGNORED_LABEL
from automodel_cli.errors import ConfigError

_OWN = "loss_fn._target_: automodel_cli.engine.loss.linear_ce.ChunkedLinearCrossEntropy works everywhere"


class LigerLinearCrossEntropy:
    """Masked next-token cross-entropy computed with the head by Liger's Triton kernels.

    Args:
        z_loss: Weight of the squared log of the softmax's denominator, which keeps logits small.
        label_smoothing: Share of the target that is spread evenly over the vocabulary.

    Raises:
        ConfigError: A number is out of its range, liger-kernel is not installed, or torch finds no GPU.
    """

    def __init__(self, z_loss: float = 0.0, label_smoothing: float = 0.0) -> None:
        check_options(z_loss, label_smoothing)
        if importlib.util.find_spec("liger_kernel") is None:
            raise ConfigError("LigerLinearCrossEntropy needs liger-kernel", help="pip install 'amcli[liger]', on Linux")
        if not torch.cuda.is_available():
            raise ConfigError("LigerLinearCrossEntropy needs a GPU, but torch finds none here", help=_OWN)
        self.z_loss = z_loss
        self.label_smoothing = label_smoothing

    def of_hidden(
        self,
        hidden_BTC: torch.Tensor,
        weight_VC: torch.Tensor,
        bias_V: torch.Tensor | None,
        labels_BT: torch.Tensor,
        *,
        num_label_tokens: int,
    ) -> torch.Tensor:
        """As `ChunkedLinearCrossEntropy.of_hidden`.

        Raises:
            ConfigError: The model is not on a GPU, or the weight is split over ranks.
        """
        if isinstance(weight_VC, DTensor):
            raise ConfigError("LigerLinearCrossEntropy needs the whole head, but its weight is split over ranks")
        if hidden_BTC.device.type != "cuda":
            raise ConfigError(
                f"LigerLinearCrossEntropy needs a GPU, but the model is on {hidden_BTC.device}", help=_OWN
            )
        # Imported here: it loads Triton, and only where it is used.
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

        total = LigerFusedLinearCrossEntropyFunction.apply(
            hidden_BTC.flatten(0, -2),
            weight_VC,
            labels_BT.flatten(),
            bias_V,
            None,  # all classes weigh the same
            IGNORED_LABEL,
            self.z_loss,
            self.label_smoothing,
            "sum",
            None,  # no cap on logits
            False,
            torch.float32,
        )[0]
        loss: torch.Tensor = total / num_label_tokens
        return loss
