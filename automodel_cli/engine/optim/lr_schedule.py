"""Learning-rate schedules as plain functions of the step, without torch.

A schedule keeps no state, so a resumed run needs nothing but the step, and another schedule from
there on is another function: a run can be extended on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from automodel_cli.engine.config.check import Settings
from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.durations import in_steps, tokens_per_step
from automodel_cli.engine.config.env import resolve_env
from automodel_cli.engine.config.sections import DECAY_STYLES, WSD_STYLES
from automodel_cli.errors import ConfigError

# Share of the decay that is done, in [0, 1] -> share of the way down from base_lr to min_lr.
_SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1.0 - math.cos(math.pi * done)),
    "linear": lambda done: done,
    "1-sqrt": math.sqrt,
    "minus_sqrt": math.sqrt,  # what Megatron calls it
}
# Without a warm-up, the inverse square root counts as if one of this length had ended at step 0,
# else the rate would halve within four steps.
_TIMESCALE_STEPS = 10_000


@dataclass(frozen=True)
class LRSchedule:
    """Linear warm-up to `base_lr`, then a decay to `min_lr`, which it keeps.

    Args:
        base_lr: Learning rate after the warm-up.
        min_lr: Learning rate at `decay_steps` and after it; `constant` never goes there, and the
            inverse square root falls to it however long that takes.
        style: `cosine` (Loshchilov and Hutter 2016), `linear`, `constant`, `inverse-square-root`
            (Vaswani et al. 2017) or `WSD` (warm-up, stable, decay; Hu et al. 2024).
        warmup_steps: Steps of warm-up; the first of them has base_lr / warmup_steps, not zero.
        decay_steps: Step at which the decay ends, counted from the start of the run. If the warm-up
            is not shorter, as in a trial run of few steps, the rate falls to `min_lr` right after it.
        wsd_decay_steps: Length of the decay of `WSD`, which ends at `decay_steps`; it may take all
            that the warm-up leaves.
        wsd_decay_style: Its shape: `1-sqrt` (Haegele et al. 2024), also known as `minus_sqrt`,
            `linear` or `cosine`.

    Raises:
        ConfigError: An unknown style, negative steps, or rates that are negative or in the wrong order.
    """

    base_lr: float
    min_lr: float = 0.0
    style: str = "constant"
    warmup_steps: int = 0
    decay_steps: int = 1
    wsd_decay_steps: int = 0
    wsd_decay_style: str = "1-sqrt"

    def __post_init__(self) -> None:
        for style, known in ((self.style, DECAY_STYLES), (self.wsd_decay_style, WSD_STYLES)):
            if style not in known:
                raise ConfigError(f"the decay style is `{style}`, but it must be one of {', '.join(known)}")
        if not 0 <= self.min_lr <= self.base_lr:
            raise ConfigError(f"min_lr is {self.min_lr}, but it must be between 0 and the base rate {self.base_lr}")
        if self.warmup_steps < 0 or self.decay_steps < 0 or self.wsd_decay_steps < 0:
            raise ConfigError(
                f"warm-up and decay take {self.warmup_steps} and {self.decay_steps} steps, "
                f"that of WSD {self.wsd_decay_steps}, but none can be negative"
            )

    def lr(self, step: int) -> float:
        """The rate of the update that follows `step` finished ones.

        >>> schedule = LRSchedule(1.0, style="linear", warmup_steps=2, decay_steps=6)
        >>> [schedule.lr(step) for step in range(7)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
        >>> schedule = LRSchedule(1.0, style="WSD", decay_steps=6, wsd_decay_steps=2, wsd_decay_style="linear")
        >>> [schedule.lr(step) for step in range(7)]
        [1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.0]
        """
        if step < self.warmup_steps:
            return self.base_lr * (step + 1) / self.warmup_steps
        if self.style == "constant":
            return self.base_lr
        if self.style == "inverse-square-root":
            timescale = self.warmup_steps or _TIMESCALE_STEPS
            return max(self.min_lr, self.base_lr * math.sqrt(timescale / (step - self.warmup_steps + timescale)))
        begin, shape = self.decay_begin, self.wsd_decay_style if self.style == "WSD" else self.style
        done = min(1.0, max(0, step - begin) / max(1, self.decay_steps - begin))
        return self.base_lr - (self.base_lr - self.min_lr) * _SHAPES[shape](done)

    @property
    def decay_begin(self) -> int:
        """The first step of the decay: after the warm-up, or after the stable phase."""
        return max(self.warmup_steps, self.decay_steps - self.wsd_decay_steps if self.style == "WSD" else 0)


def schedule_of(config: Config, settings: Settings) -> LRSchedule:
    """The schedule of a checked configuration, with lengths in tokens as steps.

    Raises:
        ConfigError: The rates are in the wrong order.
    """
    section, step_tokens = settings.lr_scheduler, tokens_per_step(config)
    decay_steps = in_steps(section.lr_decay_steps or settings.step_scheduler.max_steps, step_tokens)
    # The default of the literature is between a tenth and a fifth; the longer one is the safer.
    wsd_decay_steps = section.lr_wsd_decay_steps or max(1, decay_steps // 5)
    try:
        return LRSchedule(
            base_lr=float(resolve_env(config.get("optimizer.lr"), config.origin(("optimizer", "lr")))),
            min_lr=section.min_lr,
            style=section.lr_decay_style,
            warmup_steps=in_steps(section.lr_warmup_steps, step_tokens),
            decay_steps=decay_steps,
            wsd_decay_steps=in_steps(wsd_decay_steps, step_tokens),
            wsd_decay_style=section.lr_wsd_decay_style,
        )
    except ConfigError as error:
        error.where = str(config.origin(("lr_scheduler", "min_lr")))
        raise


def change_after(step: int, old: LRSchedule, new: LRSchedule, max_steps: int) -> str | None:
    """One line on how a resumed run's rate differs from the planned one; None if it does not.

    Args:
        step: Steps done.
        old: The schedule so far.
        new: The schedule from here on.
        max_steps: Where the run ends now.
    """
    first = next((at for at in range(step, max_steps) if old.lr(at) != new.lr(at)), None)
    if first is None:
        return None
    rates = f"{new.lr(first):.3g} instead of {old.lr(first):.3g}"
    return f"the learning rate from step {first + 1} on: {rates} there, {new.lr(max_steps - 1):.3g} at the last step"
