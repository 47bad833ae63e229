"""An optimizer over a model's parameters: grouped by what decays, fused where torch can."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from automodel_cli.engine.config.suggest import hint
from automodel_cli.engine.optim.param_groups import GroupRule, hidden_matrices, parameter_groups
from automodel_cli.errors import ConfigError

# One kernel over all parameters instead of a Python loop: 5 to 9 times faster on a CPU.
_FUSED = (torch.optim.AdamW, torch.optim.Adam)
# With one of these the user has chosen a kernel, or one that the fused kernel cannot stand in for.
_CHOOSES_KERNEL = {"fused", "foreach", "differentiable"}
# Of torchao: their state lies in tensors that only torchao can take apart, so that the first save would fail.
_CANNOT_BE_SAVED = re.compile(r"Adam(W)?(4bit|8bit|Fp8)")


def build_optimizer(
    factory: Callable[..., torch.optim.Optimizer],
    arguments: dict[str, Any],
    model: nn.Module,
    rules: Sequence[GroupRule] = (),
) -> torch.optim.Optimizer:
    """Calls `factory(groups, **arguments)`; one that names `hidden_names` is told the model's hidden matrices.

    Args:
        factory: An optimizer class; where it takes `weight_decay`, matrices get it and norms, biases and
            embeddings do not.
        arguments: Its other arguments.
        model: Its trainable parameters are optimized.
        rules: What holds for some of them.

    Raises:
        ConfigError: The model has no trainable parameter, a rule fits none or not this optimizer, or checkpoints
            cannot hold its state.
    """
    name, module = getattr(factory, "__name__", ""), getattr(factory, "__module__", "")
    if module.startswith("torchao.") and _CANNOT_BE_SAVED.fullmatch(name):
        raise ConfigError(
            f"the state of {name} lies in tensors of torchao, which checkpoints cannot hold",
            help="optimizer._target_: torchao.optim._AdamW with bf16_stochastic_round, under precision: bf16-params, "
            "saves memory too",
        )
    arguments = dict(arguments)
    decay = arguments.get("weight_decay", _default_decay(factory))
    groups = _by_mesh(parameter_groups(model, float(decay or 0.0), rules))
    if not groups:
        raise ConfigError(f"{type(model).__name__} has no parameter that is trained, so there is nothing to optimize")
    if decay is None:
        for group in groups:
            del group["weight_decay"]
    if "hidden_names" in inspect.signature(factory).parameters:
        arguments.setdefault("hidden_names", hidden_matrices(model, rules))
    if factory in _FUSED and not _CHOOSES_KERNEL & arguments.keys():
        arguments["fused"] = True
    optimizer = factory(groups, **arguments)
    _refuse_idle_options(optimizer, rules)
    return optimizer


def _refuse_idle_options(optimizer: torch.optim.Optimizer, rules: Sequence[GroupRule]) -> None:
    """Refuses an option of a rule that no group of the optimizer has by itself, and that it therefore never reads."""
    parts = [optimizer] if optimizer.defaults else getattr(optimizer, "optimizers", [])
    known = {name for part in parts for name in part.defaults}
    for rule in rules:
        idle = [name for name in rule.options if known and name not in known]
        if idle:
            raise ConfigError(
                f"{type(optimizer).__name__} reads no `{idle[0]}` of a group of parameters",
                where=rule.where,
                help=hint(idle[0], known, noun="options of a group"),
            )


def avoid_fused_kernels(optimizer: torch.optim.Optimizer) -> None:
    """Lets an optimizer that is built compute step by step, whatever it was built with.

    On a CPU the fused kernel rounds the last elements of a tensor, those that fill no vector, otherwise than the rest:
    where a tensor is cut then shows in its bits.
    """
    for group in optimizer.param_groups:
        if "fused" in group:
            group["fused"] = False


def _by_mesh(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups in which all parameters are whole, or sharded over the same ranks: fused kernels take no mixture."""
    parts: dict[tuple[int, Any], dict[str, Any]] = {}
    for index, group in enumerate(groups):
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            # Only a sharded tensor has a mesh; asking for its type would import all of torch's sharding.
            mesh = getattr(parameter, "device_mesh", None)
            part = parts.setdefault((index, mesh), {**group, "params": [], "param_names": []})
            part["params"].append(parameter)
            part["param_names"].append(name)
    return list(parts.values())


def _default_decay(factory: Callable[..., Any]) -> float | None:
    """The factory's own default for `weight_decay`; None where it has no such argument."""
    parameter = inspect.signature(factory).parameters.get("weight_decay")
    if parameter is None:
        return None
    return 0.0 if parameter.default in (inspect.Parameter.empty, None) else float(parameter.default)
