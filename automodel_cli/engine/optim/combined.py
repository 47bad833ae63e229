"""Several optimizers over different parameters that step, save and load as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


class CombinedOptimizer(torch.optim.Optimizer):
    """One list of groups and one state in front of several optimizers.

    The groups and the state are shared, not copied: what a schedule writes into `param_groups`
    reaches the optimizer that owns the group, and a state that is loaded here is loaded there.

    Args:
        optimizers: Over disjoint parameters; what becomes of them afterwards goes through this one.

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
            closure: Computes the loss anew, once for all of them.
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
