"""How many CPU threads a rank computes with where nobody has set their number."""

from __future__ import annotations

from automodel_cli.engine.distributed.launch_plan import num_cores
from automodel_cli.engine.distributed.rank_group import RankGroup


def threads_of(saved: int, group: RankGroup, *, is_elastic: bool = False) -> int | None:
    """Those of the saved run, as other numbers give other bits; None leaves the choice to torch.

    Args:
        saved: Of the run that goes on; 0 for a new one.
        group: The ranks.
        is_elastic: Whether the bits must not depend on how many ranks share a machine.
    """
    if is_elastic:
        return 1
    if group.is_alone:
        return saved or None
    # Each rank gets its share of the machine: a run that was saved alone must not start all cores in every rank.
    share = max(1, num_cores() // group.place.local_world_size)
    return min(saved or share, share)
