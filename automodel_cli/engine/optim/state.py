"""An optimizer's state as named tensors: no pickle, no numbering that another layout would break."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from automodel_cli.errors import CheckpointError


def optimizer_state_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, torch.Tensor]:
    """State by `<parameter>.<state>`, such as `transformer.wte.weight.exp_avg`; step counters included.

    Raises:
        CheckpointError: A parameter's state holds something that is neither tensor nor number.
    """
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors: dict[str, torch.Tensor] = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            name = f"{names[parameter]}.{key}"
            if isinstance(value, torch.Tensor):
                tensors[name] = value.contiguous()
            elif isinstance(value, int | float):
                tensors[name] = torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)
            else:
                kind = f"{type(optimizer).__name__} keeps {key} as {type(value).__name__}"
                raise CheckpointError(f"{kind}, which a checkpoint cannot hold: only tensors and numbers can be saved")
    return tensors


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Puts back what `optimizer_state_tensors` gave, bit for bit.

    Raises:
        CheckpointError: A tensor belongs to no parameter, or has another shape than it.
    """
    parameters = dict(model.named_parameters())
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        owner, _, key = name.rpartition(".")
        if owner not in parameters:
            raise CheckpointError(f"the optimizer state {name} belongs to no parameter of the model")
        if tensor.dim() and tensor.shape != parameters[owner].shape:
            shapes = f"{tuple(tensor.shape)}, its parameter {tuple(parameters[owner].shape)}"
            raise CheckpointError(f"the optimizer state {name} has the shape {shapes}")
        found.setdefault(owner, {})[key] = tensor
    trained = [name for group in optimizer.param_groups for name in group["param_names"]]
    if found and set(found) != set(trained):
        missing = sorted(set(trained) - set(found))
        raise CheckpointError(f"there is no optimizer state for {', '.join(missing[:4])} ({len(missing)} in all)")
    numbers: dict[int, dict[str, Any]] = {}
    for index, name in enumerate(trained):
        if name in found:
            numbers[index] = found[name]
    template = optimizer.state_dict()
    optimizer.load_state_dict({"state": numbers, "param_groups": template["param_groups"]})
