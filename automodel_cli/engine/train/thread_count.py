"""How many CPU threads a rank computes with where nobody has set their number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from automodel_cli.engine.distributed.launch_plan import num_cores

if TYPE_CHECKING:
    from automodel_cli.engine.distributed.team import Team


def threads_of(saved: int, team: Team | None, *, is_elastic: bool = False) -> int | None:
    """Those of the saved run, as other numbers give other bits; None leaves the choice to torch.

    Args:
        saved: Of the run that goes on; 0 for a new one.
        team: The ranks; None for a process alone.
        is_elastic: Whether the bits must not depend on how many ranks share a machine.
    """
    if is_elastic:
        return 1
    if team is None:
        return saved or None
    # Each rank gets its share of the machine: a run that was saved alone must not start all cores in every rank.
    share = max(1, num_cores() // team.place.local_world_size)
    return min(saved or share, share)
