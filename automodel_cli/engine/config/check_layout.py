"""What this version of amcli cannot do yet, refused with what would work."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from automodel_cli.engine.config.aliases import STRATEGIES

if TYPE_CHECKING:
    from automodel_cli.engine.config.check import Settings

# Reports a problem: the dotted key at which it stands, what is wrong, what would work.
Refuse = Callable[[str, str, str | None], None]


def check_layout(settings: Settings, refuse: Refuse) -> None:
    """Refuses parallel layouts and a second place for the precision."""
    spread = settings.distributed
    for name in ("dp_size", "dp_replicate_size", "tp_size", "cp_size", "pp_size"):
        degree = getattr(spread, name)
        if degree is not None and degree != 1:
            refuse(
                f"distributed.{name}",
                f"distributed.{name} is {degree}, but this version of amcli trains in one process",
                "set it to 1",
            )
    if spread.sequence_parallel:
        refuse(
            "distributed.sequence_parallel",
            "distributed.sequence_parallel is true, but this version of amcli trains in one process",
            "set it to false",
        )
    by_manager = STRATEGIES.get(spread._target_ or "")
    if spread.strategy and by_manager and spread.strategy != by_manager:
        refuse(
            "distributed.strategy",
            f"distributed.strategy is {spread.strategy}, but distributed._target_ is the manager of {by_manager}",
            "keep one of the two",
        )
    precision = {"float32": "fp32", "bfloat16": "bf16"}.get(spread.dtype or "")
    if precision is not None and settings.general.precision != precision:
        refuse(
            "distributed.dtype",
            f"distributed.dtype is {spread.dtype}, but the precision of amcli is set at the top level, "
            f"where it is {settings.general.precision}",
            f"write `precision: {precision}` there",
        )
