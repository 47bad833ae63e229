"""Learning-rate schedules as plain functions of the step.

A schedule keeps no state, so a resumed run needs nothing but the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from automodel_cli.errors import ConfigError

# Share of the decay that is done, in [0, 1] -> share of the way down from base_lr to min_lr.
_SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1.0 - math.cos(math.pi * done)),
    "linear": lambda done: done,
    "constant": lambda done: 0.0,
}


@dataclass(frozen=True)
class LRSchedule:
    """Linear warm-up to `base_lr`, then a decay to `min_lr`, which it keeps.

    Args:
        base_lr: Learning rate after the warm-up.
        min_lr: Learning rate at `decay_steps` and after it; `constant` never goes there.
        style: `cosine` (Loshchilov and Hutter 2016), `linear` or `constant`.
        warmup_steps: Steps of warm-up; the first of them has base_lr / warmup_steps, not zero.
        decay_steps: Step at which the decay ends, counted from the start of the run. If the warm-up
            is not shorter, as in a trial run of few steps, the rate falls to `min_lr` right after it.

    Raises:
        ConfigError: An unknown style, negative steps, or rates that are negative or in the wrong order.
    """

    base_lr: float
    min_lr: float = 0.0
    style: str = "constant"
    warmup_steps: int = 0
    decay_steps: int = 1

    def __post_init__(self) -> None:
        if self.style not in _SHAPES:
            raise ConfigError(f"the decay style is `{self.style}`, but it must be one of {', '.join(_SHAPES)}")
        if not 0 <= self.min_lr <= self.base_lr:
            raise ConfigError(f"min_lr is {self.min_lr}, but it must be between 0 and the base rate {self.base_lr}")
        if self.warmup_steps < 0 or self.decay_steps < 0:
            raise ConfigError(
                f"warm-up and decay take {self.warmup_steps} and {self.decay_steps} steps, but neither can be negative"
            )

    def lr(self, step: int) -> float:
        """The rate of the update that follows `step` finished ones.

        >>> schedule = LRSchedule(1.0, style="linear", warmup_steps=2, decay_steps=6)
        >>> [schedule.lr(step) for step in range(7)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
        """
        if step < self.warmup_steps:
            return self.base_lr * (step + 1) / self.warmup_steps
        span = max(1, self.decay_steps - self.warmup_steps)
        done = min(1.0, (step - self.warmup_steps) / span)
        return self.base_lr - (self.base_lr - self.min_lr) * _SHAPES[self.style](done)
