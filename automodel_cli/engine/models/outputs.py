"""What a causal language model returns, and how the engine reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class CausalLMOutput:
    """The output of a forward pass.

    Args:
        logits: (B, T, V), before any softmax.
    """

    logits: torch.Tensor


def logits_of(output: Any) -> torch.Tensor:
    """The logits of a model's output: the tensor itself, or its `.logits`, as Hugging Face models return.

    Raises:
        TypeError: It is neither.
    """
    logits = output if isinstance(output, torch.Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, torch.Tensor):
        raise TypeError(f"a model must return logits or an object with `.logits`, not {type(output).__name__}")
    return logits
