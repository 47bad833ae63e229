"""Whether a validation can be as the configuration wants it; torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from automodel_cli.engine.config.check_layout import Refuse
from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.durations import DurationError, in_tokens
from automodel_cli.engine.config.suggest import hint
from automodel_cli.engine.config.validation_sets import metric_keys, validation_sets

if TYPE_CHECKING:
    from automodel_cli.engine.config.check import Settings


def check_validation(config: Config, settings: Settings, refuse: Refuse) -> None:
    """Refuses a validation without data, a budget that is no number of tokens, and a best by what nobody measures."""
    steps, best = settings.step_scheduler, settings.checkpoint.best_metric_key
    if steps.val_every_steps is not None and not validation_sets(config):
        refuse(
            "step_scheduler.val_every_steps",
            f"step_scheduler.val_every_steps is {steps.val_every_steps}, but there is no `validation_dataset`",
            "add that section, or set val_every_steps to null",
        )
    if steps.val_tokens is not None:
        try:
            in_tokens(steps.val_tokens)
        except DurationError as error:
            key = "step_scheduler.val_tokens"
            refuse(key, f"{key} is {steps.val_tokens!r}, but {error}", None)
    if best not in metric_keys(config):
        message = f"checkpoint.best_metric_key is {best!r}, which no validation of this run reports"
        refuse("checkpoint.best_metric_key", message, hint(best, metric_keys(config), noun="losses"))
