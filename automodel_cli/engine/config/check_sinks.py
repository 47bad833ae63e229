"""Where a run reports to beside the console and `metrics.jsonl`, and whether the packages for that are there."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Literal

from automodel_cli.engine.config.check_layout import Refuse
from automodel_cli.engine.config.config import Config

if TYPE_CHECKING:
    from automodel_cli.engine.config.check import Settings

Service = Literal["wandb", "tensorboard"]
_SERVICES: tuple[Service, ...] = ("wandb", "tensorboard")


def reports_to(service: Service, config: Config, settings: Settings) -> bool:
    """Whether the configuration has the section of a service, and it is not switched off there."""
    if not config.has(service):
        return False
    if service == "wandb":
        return settings.wandb.enabled and settings.wandb.mode != "disabled"
    return settings.tensorboard.enabled


def check_sinks(config: Config, settings: Settings, refuse: Refuse) -> None:
    """Refuses a service whose package is not installed: the run would train and report nothing."""
    for service in _SERVICES:
        if reports_to(service, config, settings) and importlib.util.find_spec(service) is None:
            refuse(
                service,
                f"the section `{service}` asks for reports, but the package {service} is not installed",
                f"pip install 'amcli[{service}]', or `{service}: {{enabled: false}}`",
            )
