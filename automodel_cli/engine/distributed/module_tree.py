"""What the tree of a model's modules holds: transformer blocks, tied parameters, tensors; and models on `meta`.

A model on the meta device has shapes and types, and takes no memory. It is built so, put on its ranks so, and only then
given memory (`materialise`) for what each rank holds of it. The content of that memory is undefined;
`engine/models/initial.py` draws it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from automodel_cli.errors import CheckpointError


def is_meta(model: nn.Module) -> bool:
    """Whether a model has no memory yet."""
    return any(parameter.is_meta for parameter in model.parameters())


def all_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, stored or not, as the modules hold them; a tied one under its first name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def own_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict with each tied tensor under its first name only; values share the model's memory.

    Args:
        model: Whole or parallelised; may be on the meta device.

    Raises:
        CheckpointError: It holds something that is not a tensor.
    """
    seen: set[tuple[Any, ...]] = set()
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, torch.Tensor):
            kind = f"{type(model).__name__} keeps {name} as {type(tensor).__name__}"
            raise CheckpointError(f"{kind}, which a checkpoint cannot hold: only tensors can be saved")
        # Sharded tensors have no address of their own; asked by name, as importing their class takes time.
        has_address = not (tensor.is_meta or hasattr(tensor, "to_local"))
        memory = tensor.data_ptr() if has_address else id(tensor)
        identity = (memory, tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and identity in seen:
            continue
        seen.add(identity)
        tensors[name] = tensor.detach()
    return tensors


def move_to_meta(model: nn.Module) -> dict[str, torch.Tensor]:
    """Puts a model on the meta device, in place, and returns its content by name."""
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
    """Gives a model on the meta device memory, in place, for what this rank holds of it; the content is undefined.

    Args:
        model: Whole or parallelised.
        device: Where its tensors go.
    """
    tied = tied_places(model)
    model.to_empty(device=device)
    tie_again(tied)


def tied_places(model: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    """Places of the model that hold one parameter, for each parameter that has several."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((module, key))
    return [found for found in places.values() if len(found) > 1]


def tie_again(tied: list[list[tuple[nn.Module, str]]]) -> None:
    """Makes one parameter of those that torch has put into the places of one, or they would drift apart."""
    for (module, key), *others in tied:
        for other, other_key in others:
            setattr(other, other_key, getattr(module, key))


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """The modules of the longest list of modules of one class, in order; none for a model without such a list.

    Our GPT-2 has `transformer.h`, Hugging Face's Llama `model.layers`. A list inside a block (experts) is
    shorter in parameters than the list of blocks that holds it, and is passed over.
    """
    found: list[nn.Module] = []
    largest = 0
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len({type(member) for member in module}) == 1:
            size = sum(parameter.numel() for parameter in module.parameters())
            found, largest = (list(module), size) if size > largest else (found, largest)
    return found
