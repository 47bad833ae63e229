"""The options that every loss of amcli takes, held to their ranges."""

from __future__ import annotations

from automodel_cli.errors import ConfigError


def check_options(z_loss: float, label_smoothing: float) -> None:
    """Refuses weights that no training uses.

    Raises:
        ConfigError: `z_loss` is below 0, or `label_smoothing` is outside [0, 1).
    """
    if z_loss < 0:
        raise ConfigError(f"z_loss is {z_loss}, but it must be at least 0; 1e-4 is usual")
    if not 0 <= label_smoothing < 1:
        raise ConfigError(f"label_smoothing is {label_smoothing}, but it must be at least 0 and below 1")
