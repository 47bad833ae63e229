"""Muon for the hidden matrices of a model, and with it AdamW for everything else.

Muon (Jordan et al. 2024) replaces the momentum of a matrix by the nearest orthogonal matrix, which
Newton-Schulz iterations approximate in bf16. That is a property of the whole matrix: of matrices that
are sharded over ranks each rank computes its share and sends the parts back (`divided.py`); where two
dimensions of a mesh shard one, each rank gathers the momentum and computes the same update.
torch.optim.Muon works on the shards as if each were a matrix, so from the second step on it trains
another model; on whole matrices the two agree bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from torch.distributed.tensor import DTensor, Replicate

from automodel_cli.engine.optim.divided import buckets, of_whole, shard_group
from automodel_cli.engine.optim.optimizer import CombinedOptimizer
from automodel_cli.errors import ConfigError

AdjustLR = Literal["original", "match_rms_adamw"]
# Jordan's quintic: it raises small singular values fastest, and leaves all in about 0.5 to 1.5.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: each update has all singular values near 1.

    Args:
        params: Matrices, or stacks (E, rows, columns) of them, whole or sharded; or groups of such.
        lr: Learning rate.
        weight_decay: Decoupled, as in AdamW.
        momentum: Decay of the running mean of gradients.
        nesterov: Whether the gradient itself is mixed in once more.
        ns_coefficients: Coefficients of the polynomial a X + b (X X^T) X + c (X X^T)^2 X.
        eps: Least norm to divide by.
        ns_steps: Newton-Schulz iterations.
        adjust_lr_fn: `original` scales the rate by sqrt(max(1, rows / columns)); `match_rms_adamw`
            by 0.2 sqrt(max(rows, columns)), so that a rate tuned for AdamW fits (Liu et al. 2025).

    Raises:
        ValueError: A parameter is no matrix, or a number is out of range.
    """

    state_per_parameter = 1

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: Sequence[float] = _COEFFICIENTS,
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: AdjustLR = "original",
    ) -> None:
        if lr < 0 or weight_decay < 0 or not 0 <= momentum < 1 or ns_steps < 1 or len(ns_coefficients) != 3:
            raise ValueError(
                "Muon takes lr and weight_decay of at least 0, momentum in [0, 1), at least 1 of ns_steps and three "
                f"ns_coefficients; given are {lr}, {weight_decay}, {momentum}, {ns_steps} and {ns_coefficients}"
            )
        if adjust_lr_fn not in ("original", "match_rms_adamw"):
            raise ValueError(f"adjust_lr_fn is {adjust_lr_fn!r}, but it must be original or match_rms_adamw")
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": tuple(ns_coefficients),
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.dim() not in (2, 3):
                    raise ValueError(f"Muon is for matrices, not for a parameter of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        shared: dict[str, list[tuple[torch.Tensor, dict[str, Any]]]] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                ranks = shard_group(parameter)
                if ranks is not None:
                    shared.setdefault(ranks.group_name, []).append((parameter, group))
                    continue
                update = _whole_then_sharded(self._momentum(parameter, group), partial(_orthogonalised_for, group))
                _apply(parameter, update, group)
        for members in shared.values():
            self._update_together(members)
        return loss

    def _update_together(self, members: Sequence[tuple[torch.Tensor, dict[str, Any]]]) -> None:
        """Updates parameters that are sharded over the same ranks, each of which computes its share."""
        ranks = shard_group(members[0][0])
        if ranks is None:
            raise ValueError("only parameters that one group shards are updated together")
        for bucket in buckets(members, lambda member: member[0].numel(), ranks.size()):
            # Gradients of sharded parameters are sharded as they are.
            momenta = [cast(DTensor, self._momentum(*member)) for member in bucket]
            functions = [partial(_orthogonalised_for, group) for _, group in bucket]
            updates = of_whole(momenta, functions, ranks)
            for (parameter, group), update in zip(bucket, updates, strict=True):
                _apply(parameter, update, group)

    def _momentum(self, parameter: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        """Updates the momentum with the gradient; returns the matrix to orthogonalise, sharded as the parameter is."""
        grad = cast(torch.Tensor, parameter.grad)
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad, memory_format=torch.preserve_format)
        buffer = state["momentum_buffer"]
        buffer.lerp_(grad, 1 - group["momentum"])
        return grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer


def _orthogonalised_for(group: dict[str, Any], whole: torch.Tensor) -> torch.Tensor:
    return orthogonalised(whole, group["ns_coefficients"], group["ns_steps"], group["eps"])


def _apply(parameter: torch.Tensor, update: torch.Tensor, group: dict[str, Any]) -> None:
    rows, columns = parameter.shape[-2:]
    if group["adjust_lr_fn"] == "original":
        scale = math.sqrt(max(1, rows / columns))
    else:
        scale = 0.2 * math.sqrt(max(rows, columns))
    parameter.mul_(1 - group["lr"] * group["weight_decay"])
    parameter.add_(update, alpha=-group["lr"] * scale)


class MuonWithAdamW(CombinedOptimizer):
    """Muon for the hidden matrices; AdamW for embeddings, head, norms and biases: one optimizer, one state.

    Args:
        params: Groups of the model's parameters with their names, as the engine makes them.
        lr: Learning rate of Muon; the schedule starts from it, and AdamW's follows in proportion.
        adamw_lr: Learning rate of AdamW; None is `lr`, which fits only with `match_rms_adamw`.
        weight_decay: Decoupled; of all matrices.
        momentum: Momentum of Muon.
        nesterov: Muon: whether to mix in the gradient itself once more.
        ns_steps: Muon: Newton-Schulz iterations.
        adjust_lr_fn: Muon: `original` scales its rate by sqrt(max(1, rows / columns)), `match_rms_adamw`
            by 0.2 sqrt(max(rows, columns)), so that a rate tuned for AdamW fits.
        adamw_betas: Betas of AdamW.
        adamw_eps: Epsilon of AdamW.
        hidden_names: Names of the parameters that Muon takes; the engine gives them.

    Raises:
        ConfigError: There is no hidden matrix, or the rates do not fit each other.
    """

    # Muon keeps a momentum for each hidden matrix, AdamW two moments for everything else.
    state_per_parameter = 2
    state_per_matrix = 1
    counts_steps = True
    options_of_whole = ("adamw_lr", "adamw_betas", "adamw_eps")

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 0.02,
        adamw_lr: float | None = None,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: AdjustLR = "original",
        adamw_betas: Sequence[float] = (0.9, 0.95),
        adamw_eps: float = 1e-8,
        hidden_names: Collection[str] = (),
    ) -> None:
        if adamw_lr is None and adjust_lr_fn != "match_rms_adamw":
            raise ConfigError(
                "MuonWithAdamW has no adamw_lr, and the rate of Muon is far too high for AdamW",
                help="give adamw_lr (3e-4 is common), or adjust_lr_fn: match_rms_adamw and one rate for both",
            )
        if lr <= 0:
            raise ConfigError(f"lr is {lr}, but it must be above 0: the rate of AdamW is kept in proportion to it")
        groups = list(params)
        matrices = [part for group in groups if (part := _part(group, hidden_names, inside=True))]
        others = [part for group in groups if (part := _part(group, hidden_names, inside=False))]
        if not matrices:
            raise ConfigError("the model has no hidden matrix that Muon could train", help="use torch.optim.AdamW")
        for group in others:
            group["lr_mult"] = group.get("lr_mult", 1.0) * ((adamw_lr or lr) / lr)
        optimizers: list[torch.optim.Optimizer] = [
            Muon(
                matrices,
                lr=lr,
                weight_decay=weight_decay,
                momentum=momentum,
                nesterov=nesterov,
                ns_steps=ns_steps,
                adjust_lr_fn=adjust_lr_fn,
            )
        ]
        if others:
            betas = (float(adamw_betas[0]), float(adamw_betas[1]))
            optimizers.append(torch.optim.AdamW(others, lr=lr, betas=betas, eps=adamw_eps, fused=True))
        super().__init__(optimizers)


def orthogonalised(
    matrix: torch.Tensor, coefficients: Sequence[float] = _COEFFICIENTS, steps: int = 5, eps: float = 1e-7
) -> torch.Tensor:
    """Newton-Schulz: a matrix with the singular vectors of `matrix` and singular values near 1, in bf16.

    Args:
        matrix: (rows, columns), or a stack (E, rows, columns), whole; it is not changed.
        coefficients: Coefficients of the odd polynomial of degree 5 that is iterated.
        steps: Number of iterations.
        eps: Least norm to divide by.
    """
    a, b, c = coefficients
    x = matrix.bfloat16()
    is_tall = x.size(-2) > x.size(-1)
    if is_tall:
        x = x.mT
    # The iteration converges below a spectral norm of sqrt(3), which the Frobenius norm bounds.
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=eps)
    multiply_add = torch.addmm if x.dim() == 2 else torch.baddbmm
    for _ in range(steps):
        gram = x @ x.mT
        x = multiply_add(x, multiply_add(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def _whole_then_sharded(tensor: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """`function` of the whole tensor; of a sharded one, this rank's part of the result."""
    if not isinstance(tensor, DTensor):
        return function(tensor)
    mesh = tensor.device_mesh
    result = DTensor.from_local(function(tensor.full_tensor()), mesh, [Replicate()] * mesh.ndim, run_check=False)
    return result.redistribute(mesh, tensor.placements)


def _part(group: dict[str, Any], names: Collection[str], *, inside: bool) -> dict[str, Any] | None:
    """The parameters of a group whose name is, or is not, among `names`; None if there is none."""
    pairs = zip(group["param_names"], group["params"], strict=True)
    kept = [(name, parameter) for name, parameter in pairs if (name in names) == inside]
    if not kept:
        return None
    return group | {"param_names": [name for name, _ in kept], "params": [parameter for _, parameter in kept]}
