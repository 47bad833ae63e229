"""What a causal language model returns, and how the engine reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from automodel_cli.errors import ConfigError

if TYPE_CHECKING:
    from automodel_cli.engine.protocols import Metrics


@dataclass
class CausalLMOutput:
    """The output of a forward pass.

    Args:
        logits: (B, T, V), before any softmax.
        metrics: Numbers to report; see `Metric`.
    """

    logits: torch.Tensor
    metrics: Metrics | None = None


def logits_of(output: Any) -> torch.Tensor:
    """The logits of a model's output: the tensor itself, or its `.logits`, as Hugging Face models return.

    Raises:
        ConfigError: It is neither.
    """
    logits = output if isinstance(output, torch.Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, torch.Tensor):
        raise ConfigError(
            f"the model's forward returned {in_words(output)}, not logits",
            help=f"return the logits (B, T, V), as a tensor or an object with `.logits`{_instead(output)}",
        )
    return logits


def in_words(value: Any) -> str:
    """What a value is, with the shapes of tensors in it.

    >>> in_words((torch.zeros(2, 3), None)), in_words({"loss": 1.0}), in_words("text")
    ('a tuple of (Tensor (2, 3), None)', 'a dict of (loss: float)', 'a str')
    """
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} of ({', '.join(f'{name}: {_item(item)}' for name, item in value.items())})"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of ({', '.join(map(_item, value))})"
    return _item(value) if value is None or isinstance(value, torch.Tensor) else f"a {type(value).__name__}"


def _item(value: Any) -> str:
    if value is None:
        return "None"
    return type(value).__name__ + (f" {tuple(value.shape)}" if isinstance(value, torch.Tensor) else "")


def _instead(output: Any) -> str:
    if isinstance(output, Mapping) and isinstance(output.get("logits"), torch.Tensor):
        return ': here output["logits"] alone'
    if isinstance(output, tuple | list):
        places = [place for place, item in enumerate(output) if isinstance(item, torch.Tensor) and item.ndim == 3]
        return f": here output[{places[0]}] alone" if places else ""
    return ""
