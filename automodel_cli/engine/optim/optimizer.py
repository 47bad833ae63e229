"""Builds an optimizer over a model's parameters, joins several into one, and saves and loads state as named tensors.

Parameters are grouped by weight decay; the fused kernel is used where an optimizer has one. State has no pickle and no
numbering that another layout would break. Rates and betas are not state: they come from the configuration, so that
a changed one counts after a resume.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from automodel_cli.engine.config.declared_facts import optimizer_facts
from automodel_cli.engine.config.suggest import hint
from automodel_cli.engine.optim.param_groups import GroupRule, hidden_matrices, parameter_groups
from automodel_cli.errors import CheckpointError, ConfigError

# With one of these options the user has chosen a kernel, or the fused kernel cannot replace what they chose.
_CHOOSES_KERNEL = {"fused", "foreach", "differentiable"}


def build_optimizer(
    factory: Callable[..., torch.optim.Optimizer],
    arguments: dict[str, Any],
    model: nn.Module,
    rules: Sequence[GroupRule] = (),
) -> torch.optim.Optimizer:
    """Calls `factory(groups, **arguments)`; one that takes `hidden_names` gets those of the model's hidden matrices.

    Args:
        factory: An optimizer class; where it takes `weight_decay`, matrices get it and norms, biases and
            embeddings do not.
        arguments: Its other arguments.
        model: Its trainable parameters are optimized.
        rules: What holds for some of them.

    Raises:
        ConfigError: The model has no trainable parameter, a rule fits none or not this optimizer, checkpoints
            cannot hold its state, or the factory made something else.
    """
    facts = optimizer_facts(factory)
    if not facts.can_be_saved:
        package, name = factory.__module__.partition(".")[0], factory.__name__
        raise ConfigError(
            f"the state of {name} lies in tensors of {package}, which checkpoints cannot hold",
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
    # One kernel over all parameters instead of a Python loop: 5 to 9 times faster on a CPU.
    if facts.has_fused_kernel and not _CHOOSES_KERNEL & arguments.keys():
        arguments["fused"] = True
    optimizer = factory(groups, **arguments)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"optimizer._target_ returned {type(optimizer).__name__}, not a torch.optim.Optimizer")
    _refuse_idle_options(optimizer, rules)
    return optimizer


def _refuse_idle_options(optimizer: torch.optim.Optimizer, rules: Sequence[GroupRule]) -> None:
    """Refuses an option of a rule that the optimizer has no default for, and so never reads."""
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
    """Turns off the fused kernels of an optimizer that is built.

    On a CPU the fused kernel rounds the last elements of a tensor, those that fill no vector, in another way than the
    rest, so the bits would depend on where a tensor is split.
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
        optimizer: The same class over the same parameters, before its first step.
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


class CombinedOptimizer(torch.optim.Optimizer):
    """One list of groups and one state in front of several optimizers.

    The groups and the state are shared, not copied: what a schedule writes into `param_groups`
    reaches the optimizer that owns the group, and a state that is loaded here is loaded there.

    Args:
        optimizers: Over disjoint parameters; after this, use only the combined optimizer.

    Raises:
        ValueError: Two of them share a parameter.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimizers = list(optimizers)
        super().__init__([dict(group) for optimizer in optimizers for group in optimizer.param_groups], {})
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of each.

        Args:
            closure: Computes the loss again, once for all of them.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        # `load_state_dict` comes here with new groups and a new state.
        super().__setstate__(state)
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "optimizers": self.optimizers}

    def _share(self) -> None:
        begin = 0
        for optimizer in self.optimizers:
            end = begin + len(optimizer.param_groups)
            optimizer.param_groups = self.param_groups[begin:end]
            optimizer.state = self.state
            begin = end
