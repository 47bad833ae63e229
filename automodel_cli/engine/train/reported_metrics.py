"""Numbers that a model or a loss reports beside the loss of a step, on their way to the step line.

They stay on the device until the loss of the step is read, and are copied together with it. Values of all micro-batches
of all ranks are reduced in one order and in fp64, so that a number does not depend on how many ranks there are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from automodel_cli.engine.distributed.rank_group import RankGroup
from automodel_cli.engine.observe.metrics import STEP_NAMES
from automodel_cli.engine.protocols import IGNORED_LABEL, Metric
from automodel_cli.errors import ConfigError

if TYPE_CHECKING:
    from automodel_cli.engine.protocols import Metrics

_NAME = re.compile(r"[A-Za-z][\w./-]{0,63}")
_REDUCTIONS = ("mean", "sum", "max")
_Kinds = dict[str, tuple[str, str]]  # reduction and unit by name


class ReportedMetrics:
    """Collects what the micro-batches of a step report; one object serves all steps of a run."""

    def __init__(self) -> None:
        self._kinds: _Kinds = {}
        self._are_agreed = False  # whether all ranks have the same kinds
        self._num_added = 0
        self._rows: list[torch.Tensor] = []

    @property
    def units(self) -> dict[str, str]:
        """Unit of each number, in the order of `reduced`."""
        return {name: unit for name, (_, unit) in self._kinds.items()}

    def begin_step(self) -> None:
        """Forgets what a step that failed has left."""
        self._rows.clear()
        self._num_added = 0

    def add(self, labels_BT: torch.Tensor, *sources: Metrics | None) -> None:
        """Adds the numbers of one micro-batch.

        Raises:
            ConfigError: They cannot be reported, or have other names than those of the first micro-batch.
        """
        found: dict[str, Metric] = {}
        for source in sources:
            if not isinstance(source, Mapping | None):
                raise ConfigError(f"metrics are a {type(source).__name__}, not a mapping of names to tensors")
            for name, value in (source or {}).items():
                if name in found:
                    raise ConfigError(f"the metric {name!r} is reported by the model and by the loss")
                found[name] = _checked(name, value if isinstance(value, Metric) else Metric(value))
        kinds: _Kinds = {name: (found[name].reduction, found[name].unit) for name in sorted(found)}
        if not (self._are_agreed or self._num_added):
            self._kinds = kinds
        elif kinds != self._kinds:
            raise _differing("this micro-batch", kinds, "the first one", self._kinds)
        self._num_added += 1
        if not kinds:
            return
        values = [_plain(found[name].value).to(labels_BT.device, torch.float64).view(()) for name in kinds]
        self._rows.append(torch.stack([(labels_BT != IGNORED_LABEL).sum().double(), *values]))

    def reduced(self, group: RankGroup) -> torch.Tensor | None:
        """Collective: the numbers of the step over all micro-batches of all ranks, fp64 (N,); None without any.

        Raises:
            ConfigError: The ranks do not report the same numbers.
        """
        if not self._are_agreed:
            first = group.broadcast(self._kinds if group.rank == 0 else None)
            if group.any(self._kinds != first):
                raise _differing(f"rank {group.rank}", self._kinds, "rank 0", first)
            self._are_agreed = True
        if not self._kinds:
            return None
        own = torch.stack(self._rows)
        # Every element has one summand that is not zero, so that the sum over the ranks gathers the rows unchanged.
        table = own.new_zeros(len(own), group.world_size, 1 + own.shape[1])
        table[:, group.rank, 0] = 1.0 if group.tp_rank == 0 else 0.0  # tensor-parallel peers repeat the same numbers
        table[:, group.rank, 1:] = own
        is_counted, num_tokens, *columns = group.all_reduce(table).flatten(0, 1).unbind(1)
        counted = is_counted > 0
        num_tokens = torch.where(counted, num_tokens, 0.0)
        reductions = (reduction for reduction, _ in self._kinds.values())
        return torch.stack([_reduced(*of, counted, num_tokens) for of in zip(reductions, columns, strict=True)])


def _reduced(reduction: str, values: torch.Tensor, counted: torch.Tensor, num_tokens: torch.Tensor) -> torch.Tensor:
    if reduction == "max":
        return torch.where(counted, values, -torch.inf).max()
    if reduction == "sum":
        return torch.where(counted, values, 0.0).sum()
    # A micro-batch without label tokens has no weight, whatever its value is.
    return torch.where(num_tokens > 0, values * num_tokens, 0.0).sum() / num_tokens.sum()


def _plain(value: torch.Tensor) -> torch.Tensor:
    """The number itself, where tensor parallelism has made a distributed tensor of it."""
    detached = value.detach()
    return detached.full_tensor() if hasattr(detached, "full_tensor") else detached


def _checked(name: str, metric: Metric) -> Metric:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no name of a metric",
            help="at most 64 letters, digits and _ . / -, the first of them a letter",
        )
    if name in STEP_NAMES:
        raise ConfigError(f"the name {name!r} of a metric is taken: every step reports it already")
    if metric.reduction not in _REDUCTIONS:
        raise ConfigError(f"the reduction of the metric {name!r} is {metric.reduction!r}, not one of {_REDUCTIONS}")
    if not isinstance(metric.value, torch.Tensor) or metric.value.numel() != 1 or metric.value.is_complex():
        kind = type(metric.value).__name__
        shape = f" {tuple(metric.value.shape)}" if isinstance(metric.value, torch.Tensor) else ""
        raise ConfigError(f"the metric {name!r} is a {kind}{shape}, not a tensor of one number")
    return metric


def _differing(who: str, kinds: _Kinds, other: str, others: Mapping[str, tuple[str, str]]) -> ConfigError:
    return ConfigError(
        f"{who} reports the metrics {kinds or 'none'}, {other} {dict(others) or 'none'}",
        help="report the same names for every micro-batch on every rank; NaN stands for an unknown value",
    )
