"""Models without content: every tensor has its shape and type on the meta device, and takes no memory.

A model is built so, spread over its ranks so, and only then given memory (`materialise`) for what each rank holds of
it. What `materialise` leaves in that memory is undefined; `engine/models/initial.py` draws what belongs there.
"""

from __future__ import annotations

import torch
from torch import nn


def is_skeleton(model: nn.Module) -> bool:
    """Whether a model has no content yet."""
    return any(parameter.is_meta for parameter in model.parameters())


def all_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, stored or not, as the modules hold them; a tied one under its first name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def take_apart(model: nn.Module) -> dict[str, torch.Tensor]:
    """Makes a skeleton of a model, in place, and returns what was its content, by name."""
    content = {name: tensor.detach() for name, tensor in all_tensors(model).items()}
    empty: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for key, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in empty:
                    on_meta = torch.empty_like(tensor, device="meta")
                    is_parameter = isinstance(tensor, nn.Parameter)
                    # Both old and new stay referenced, so no two of them ever have one id.
                    empty[id(tensor)] = nn.Parameter(on_meta, tensor.requires_grad) if is_parameter else on_meta
                tensors[key] = empty[id(tensor)]  # type: ignore[assignment]  # a parameter for a parameter
    return content


def materialise(model: nn.Module, device: torch.device) -> None:
    """Gives a skeleton memory, in place, for what this rank holds of it; the content is undefined.

    Args:
        model: Whole or spread.
        device: Where its tensors go.
    """
    tied = _places_of_tied(model)
    model.to_empty(device=device)
    # torch gives every place memory of its own; shared parameters must be one again, or they would drift apart.
    for (module, key), *others in tied:
        for other, other_key in others:
            setattr(other, other_key, getattr(module, key))


def _places_of_tied(model: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    """Places of the model that hold one parameter, for each parameter that has several."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((module, key))
    return [found for found in places.values() if len(found) > 1]
