"""Which parameters decay."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for an optimizer: matrices with weight decay; norms, biases and embeddings without.

    Decay on a norm's gain or on the embedding of a rare token pulls it to zero without evidence.
    Each parameter stands once, also when it is tied, and a tied head counts as the embedding.
    """
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    decayed: list[tuple[str, nn.Parameter]] = []
    plain: list[tuple[str, nn.Parameter]] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.dim() >= 2 and id(parameter) not in embeddings
            (decayed if decays else plain).append((name, parameter))
    groups = [(decayed, weight_decay), (plain, 0.0)]
    return [
        {
            "params": [parameter for _, parameter in members],
            "param_names": [name for name, _ in members],
            "weight_decay": decay,
        }
        for members, decay in groups
        if members
    ]
