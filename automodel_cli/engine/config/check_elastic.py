"""Whether a run can give the same bits on any number of ranks; what splits more than the batch is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from automodel_cli.engine.config.check_layout import Refuse
from automodel_cli.engine.config.config import Config

if TYPE_CHECKING:
    from automodel_cli.engine.config.check import Settings


def check_elastic(config: Config, settings: Settings, refuse: Refuse) -> None:
    """Refuses, of a run with `deterministic: elastic`, what computes other sums on other numbers of ranks.

    Args:
        config: For what is built from a `_target_`.
        settings: The typed sections.
        refuse: Takes the problems.
    """
    if settings.general.deterministic != "elastic":
        return
    section = settings.distributed
    obstacles = {
        "distributed.tp_size": (section.tp_size > 1, "tensor parallelism splits the sums inside of products"),
        "distributed.cp_size": (section.cp_size > 1, "context parallelism splits the sums over a sequence"),
        "distributed.dp_replicate_size": (
            (section.dp_replicate_size or 1) > 1,
            "groups of replicas are summed within each group first",
        ),
        "compile.enabled": (settings.compile.enabled, "a program is compiled for one layout"),
        "optimizer.fused": (
            config.get("optimizer.fused") is True,
            "fused kernels round the last elements of a tensor otherwise than the rest",
        ),
        "step_scheduler.local_batch_size": (
            config.get("step_scheduler.local_batch_size") == "auto",
            "another size of the micro-batches gives other sums",
        ),
        "precision": (settings.general.precision == "fp8", "the scales of 8-bit products are shared over the ranks"),
    }
    for path, (is_there, why) in obstacles.items():
        if is_there:
            refuse(
                path,
                f"{path} is {str(config.get(path)).lower()}, but deterministic is elastic, the same bits on any number "
                f"of ranks: {why}",
                "leave it out, or set deterministic to true, the same bits on the same number of ranks",
            )
