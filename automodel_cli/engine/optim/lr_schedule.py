"""Learning-rate schedules as plain functions of the step, without torch.

A schedule keeps no state, so a resumed run needs nothing but the step, and another schedule from
there on is another function: a run can be extended on purpose. `lr_scheduler._target_` brings a function of the user.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

from automodel_cli.engine.config.config import TARGET, Config
from automodel_cli.engine.config.instantiate import bind
from automodel_cli.engine.config.sections import DECAY_STYLES, WSD_STYLES
from automodel_cli.engine.config.settings import Settings
from automodel_cli.engine.config.values import in_steps, resolve_env, tokens_per_step
from automodel_cli.errors import AmcliError, ConfigError

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


class Schedule(Protocol):
    """The learning rate as a function of the step, with what is shown of it."""

    @property
    def style(self) -> str:
        """Its name."""

    @property
    def phases(self) -> dict[str, int | None]:
        """Steps at which its phases begin and end; None where they are not known."""

    def lr(self, step: int) -> float:
        """The rate of the update that follows `step` finished ones."""

    def summary(self) -> str:
        """One line for users."""


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

    @property
    def phases(self) -> dict[str, int | None]:
        """As in `Schedule`."""
        return {
            "warmup_steps": self.warmup_steps,
            "decay_begin_step": self.decay_begin,
            "decay_end_step": self.decay_steps,
        }

    def summary(self) -> str:
        """As in `Schedule`."""
        style = f"WSD ({self.wsd_decay_style})" if self.style == "WSD" else self.style
        rates = f"{self.base_lr:g}" if self.style == "constant" else f"{self.base_lr:g} to {self.min_lr:g}"
        line = f"{style}, {rates}, warm-up {self.warmup_steps:,} steps"
        if self.style not in ("constant", "inverse-square-root"):
            line += f", decay from step {self.decay_begin:,} to {self.decay_steps:,}"
        return line


@dataclass(frozen=True)
class CustomSchedule:
    """`base_lr` times what a function of the user returns.

    Args:
        base_lr: `optimizer.lr`.
        function: Called as `function(step, **arguments)`, where `step` counts finished updates; returns a multiplier.
        arguments: The other keys of the section.
        style: The function as the configuration names it.
        where: The place of that name, for errors.
    """

    base_lr: float
    function: Callable[..., Any]
    arguments: dict[str, Any]
    style: str
    where: str

    def lr(self, step: int) -> float:
        """As in `Schedule`.

        Raises:
            ConfigError: The function fails, or returns no finite number of at least 0.
        """
        try:
            multiplier = self.function(step, **self.arguments)
        except AmcliError:
            raise
        except (Exception, SystemExit) as error:
            raise self._error(f"raised {type(error).__name__} for step {step}: {error}", None) from error
        is_number = isinstance(multiplier, Real) and not isinstance(multiplier, bool)
        if not is_number or not 0 <= multiplier < math.inf:
            found = multiplier if is_number else f"{multiplier!r:.60} ({type(multiplier).__name__})"
            rule = "a schedule returns a multiplier of optimizer.lr: a finite number of at least 0"
            raise self._error(f"returned {found} for step {step}", rule)
        return self.base_lr * float(multiplier)

    def _error(self, message: str, help_: str | None) -> ConfigError:
        return ConfigError(f"lr_scheduler.{TARGET}: `{self.style}` {message}", where=self.where, help=help_)

    @property
    def phases(self) -> dict[str, int | None]:
        """As in `Schedule`: only the function knows them."""
        return {"warmup_steps": None, "decay_begin_step": None, "decay_end_step": None}

    def summary(self) -> str:
        """As in `Schedule`."""
        return f"{self.style}, a multiplier of {self.base_lr:g}"


def schedule_of(config: Config, settings: Settings) -> Schedule:
    """The schedule of a checked configuration, with lengths in tokens as steps.

    Raises:
        ConfigError: The rates are in the wrong order, or the user's function cannot be used at the first or last step.
    """
    base_lr = float(resolve_env(config.get("optimizer.lr"), config.origin(("optimizer", "lr"))))
    last = settings.step_scheduler.max_steps
    if settings.lr_scheduler._target_ is not None:
        function, arguments = bind(config, "lr_scheduler", {"max_steps": last}, supplied=("step",))
        where = str(config.origin(("lr_scheduler", TARGET)))
        schedule = CustomSchedule(base_lr, function, arguments, settings.lr_scheduler._target_, where)
        for step in (0, last - 1):
            schedule.lr(step)
        return schedule
    section, step_tokens = settings.lr_scheduler, tokens_per_step(config)
    decay_steps = in_steps(section.lr_decay_steps or last, step_tokens)
    # The default of the literature is between a tenth and a fifth; the longer one is the safer.
    wsd_decay_steps = section.lr_wsd_decay_steps or max(1, decay_steps // 5)
    try:
        return LRSchedule(
            base_lr=base_lr,
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


def change_after(step: int, old: Schedule, new: Schedule, max_steps: int) -> str | None:
    """One line on how a resumed run's rate differs from the planned one; None if it does not.

    Args:
        step: Steps done.
        old: The schedule so far.
        new: The schedule from here on.
        max_steps: Where the run ends now.
    """
    first = next((at for at in range(step, max_steps) if _planned(old, at) != new.lr(at)), None)
    if first is None:
        return None
    planned = _planned(old, first)
    rates = f"{new.lr(first):.3g} instead of {'none' if planned is None else f'{planned:.3g}'}"
    return f"the learning rate from step {first + 1} on: {rates} there, {new.lr(max_steps - 1):.3g} at the last step"


def _planned(schedule: Schedule, step: int) -> float | None:
    """The rate of a schedule at a step; None where it has none, as a user's function may beyond its own last step."""
    try:
        return schedule.lr(step)
    except ConfigError:
        return None
