"""Whether the learning rate and the lengths of its phases make a curve; torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from automodel_cli.engine.config.check_layout import Refuse
from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.durations import DurationError, in_steps, tokens_per_step
from automodel_cli.engine.config.env import resolve_env
from automodel_cli.engine.config.sections import LRSchedulerSection, section_fields
from automodel_cli.errors import ConfigError

if TYPE_CHECKING:
    from automodel_cli.engine.config.check import Settings


def check_schedule(config: Config, settings: Settings, refuse: Refuse) -> None:
    """Refuses rates that are no numbers or in the wrong order, and lengths that overlap or cannot be converted."""
    section = settings.lr_scheduler
    _check_rates(config, section.min_lr, refuse)
    lengths = _lengths(config, section, refuse)
    warmup, decay = lengths.get("lr_warmup_steps"), lengths.get("lr_decay_steps")
    if warmup is not None and decay is not None and decay <= warmup:
        refuse(
            "lr_scheduler.lr_decay_steps",
            f"lr_scheduler.lr_decay_steps is {_shown(section.lr_decay_steps, decay)}, "
            f"but the decay must end after the warm-up, lr_warmup_steps = {_shown(section.lr_warmup_steps, warmup)}",
            None,
        )
    wsd, end = lengths.get("lr_wsd_decay_steps"), decay or settings.step_scheduler.max_steps
    if wsd is not None and warmup is not None and section.lr_decay_style == "WSD" and wsd > max(1, end - warmup):
        refuse(
            "lr_scheduler.lr_wsd_decay_steps",
            f"lr_scheduler.lr_wsd_decay_steps is {_shown(section.lr_wsd_decay_steps, wsd)}, but between the warm-up "
            f"and the end of the decay there are {end} - {warmup} = {end - warmup} steps",
            f"up to {max(1, end - warmup)} would work",
        )


def _check_rates(config: Config, min_lr: float, refuse: Refuse) -> None:
    raw = config.get("optimizer.lr") if isinstance(config.get("optimizer"), Mapping) else 0.0
    if raw is None:
        refuse("optimizer", "optimizer has no `lr`, and the schedule starts from it", "for example `lr: 3e-4`")
        return
    try:
        lr = resolve_env(raw, config.origin(("optimizer", "lr")))
    except ConfigError as error:
        refuse("optimizer.lr", error.message, error.help)
        return
    if isinstance(lr, bool) or not isinstance(lr, int | float) or not lr >= 0:
        refuse("optimizer.lr", f"optimizer.lr is {lr!r}, but it must be a number of at least 0", "for example 3e-4")
    elif min_lr > lr and isinstance(config.get("optimizer"), Mapping):
        refuse(
            "lr_scheduler.min_lr",
            f"lr_scheduler.min_lr is {min_lr}, but it must be at most optimizer.lr = {lr}",
            f"{lr / 10:g} is common",
        )


def _lengths(config: Config, section: LRSchedulerSection, refuse: Refuse) -> dict[str, int]:
    """The lengths that were given, in steps; those that cannot be told are refused and left out."""
    steps: dict[str, int] = {}
    for name, item in section_fields(LRSchedulerSection).items():
        value: Any = getattr(section, name)
        if not item.metadata["duration"] or value is None:
            continue
        try:
            steps[name] = in_steps(value, tokens_per_step(config))
        except DurationError as error:
            help_ = "give it in steps, such as 2000" if "not known" in str(error) else None
            refuse(f"lr_scheduler.{name}", f"lr_scheduler.{name} is {value!r}, but {error}", help_)
    return steps


def _shown(value: int | str | None, steps: int) -> str:
    return f"{value} ({steps:,} steps)" if isinstance(value, str) else str(steps)
