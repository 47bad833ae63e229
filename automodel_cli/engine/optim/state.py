"""An optimizer's state as named tensors: no pickle, no numbering that another layout would break.

Settings such as rates and betas are not state: they come from the configuration, so that a
changed one counts after a resume.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from automodel_cli.errors import CheckpointError

# Marks a state that was a Python number. `0.9**count` is fp64 for a number and fp32 for a tensor,
# so a count that came back as a tensor would give the resumed run other bits.
_NUMBER = ":number"
_NUMBER_TYPES = {bool: torch.bool, int: torch.int64, float: torch.float64}


def optimizer_state_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, torch.Tensor]:
    """State by `<parameter>.<state>`, such as `transformer.wte.weight.exp_avg`; step counters included.

    The tensors are the optimizer's own where they are contiguous: write them before the next step.

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
            elif type(value) in _NUMBER_TYPES:
                tensors[name + _NUMBER] = torch.tensor(value, dtype=_NUMBER_TYPES[type(value)])
            else:
                kind = f"{type(optimizer).__name__} keeps {key} as {type(value).__name__}"
                raise CheckpointError(f"{kind}, which a checkpoint cannot hold: only tensors and numbers can be saved")
    return tensors


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Puts back what `optimizer_state_tensors` gave, bit for bit; the optimizer may keep the tensors.

    Args:
        optimizer: Of the same class and over the same parameters, with no step done.
        model: The model of that optimizer.
        tensors: A parameter without any begins anew, as it would have in the saved run: an optimizer
            holds no state for what never had a gradient, and plain SGD holds none at all.

    Raises:
        CheckpointError: A tensor belongs to no trained parameter.
    """
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    trained = {names[parameter]: parameter for group in optimizer.param_groups for parameter in group["params"]}
    found = _by_parameter(tensors, trained)
    numbered = {index: dict(found[name]) for index, name in enumerate(trained) if name in found}
    optimizer.load_state_dict({"state": numbered, "param_groups": optimizer.state_dict()["param_groups"]})
    for name, state in found.items():
        placed = optimizer.state[trained[name]]
        for key, value in state.items():
            # `load_state_dict` chose the device, but it casts to the parameter's type and so loses
            # bits of an fp32 average over bf16 weights.
            placed[key] = value.to(placed[key].device) if isinstance(value, torch.Tensor) else value


def _by_parameter(tensors: Mapping[str, torch.Tensor], trained: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each parameter's state by its own keys, numbers as numbers again."""
    found: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        owner, _, key = name.rpartition(".")
        if owner not in trained:
            raise CheckpointError(
                f"the optimizer state {name} belongs to no parameter that is trained",
                help="resume with the model and the optimizer that the run was trained with",
            )
        is_number = key.endswith(_NUMBER)
        found.setdefault(owner, {})[key.removesuffix(_NUMBER)] = tensor.item() if is_number else tensor
    return found
