"""Starting the ranks of a run, or joining those that somebody else has started."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from automodel_cli.commands import render
from automodel_cli.commands.options import own_arguments
from automodel_cli.engine.config.check import Settings
from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.durations import DurationError, in_seconds
from automodel_cli.engine.distributed.environment import RankPlace, rank_place
from automodel_cli.engine.distributed.launch_plan import NPROC_WORDS, LaunchPlan, check_port, launch_plan
from automodel_cli.engine.observe.metrics import Fanout, Sink
from automodel_cli.errors import UsageError

OpenSink = Callable[[], AbstractContextManager[Sink]]

# Room for the largest checkpoint that a disk takes in this time; torchrun's own 30 s are short for one.
GRACE_SECONDS = 120

NprocOption = Annotated[
    str | None,
    typer.Option(
        "--nproc-per-node",
        metavar="N|auto|gpu|cpu",
        help="Train in so many processes on this machine.",
        show_default=False,
        autocompletion=lambda: list(NPROC_WORDS),
    ),
]
NnodesOption = Annotated[
    str, typer.Option("--nnodes", metavar="N|MIN:MAX", help="Machines that take part.", show_default=False)
]
NodeRankOption = Annotated[
    int | None, typer.Option("--node-rank", metavar="N", help="Number of this machine, from 0.", show_default=False)
]
RdzvEndpointOption = Annotated[
    str,
    typer.Option("--rdzv-endpoint", metavar="HOST:PORT", help="Where the machines meet.", show_default=False),
]
RdzvBackendOption = Annotated[
    str,
    typer.Option("--rdzv-backend", metavar="NAME", help="What they meet by: c10d, or static.", show_default=False),
]
MaxRestartsOption = Annotated[
    int,
    typer.Option(
        "--max-restarts", metavar="N", min=0, help="Start again from the last checkpoint after so many failures."
    ),
]

MaxTimeOption = Annotated[
    str | None,
    typer.Option(
        "--max-time",
        metavar="TIME",
        help="Save and stop with exit code 6 after this time, such as 3h30m.",
        show_default=False,
    ),
]
# When the run must stop, for the ranks that a launcher starts, and starts again: its time counts for all of them.
_STOP_AT = "AMCLI_STOP_AT"


def stop_at(max_time: str | None) -> float | None:
    """The moment of `time.monotonic()`, one clock for all processes of a machine, at which the time is up.

    Raises:
        UsageError: It is no time.
    """
    if max_time is None:
        return None
    try:
        seconds = in_seconds(max_time)
    except DurationError as error:
        raise UsageError(f"--max-time is {max_time!r}, but {error}") from None
    inherited = os.environ.get(_STOP_AT)
    return float(inherited) if inherited else time.monotonic() + seconds


@dataclass(frozen=True)
class Ranks:
    """The processes of this command: those to start, or those that this one is among."""

    place: RankPlace
    plan: LaunchPlan | None

    @property
    def world_size(self) -> int:
        """Processes that train together."""
        return self.plan.world_size if self.plan else self.place.world_size

    def speaker(self, as_json: bool, *, quiet: bool = False) -> render.Say:
        """Where notes go: nowhere from a rank that is not the first, or whose launcher has said them."""
        if self.place.is_ours or not self.place.speaks:
            return lambda text: None
        return render.speaker(as_json, quiet=quiet)

    def sink(self, open_sink: OpenSink) -> OpenSink:
        """What this rank reports to: nothing, unless it is the first."""
        return open_sink if self.place.speaks else lambda: nullcontext(Fanout([]))

    def check_for_certain(self, config: Config, settings: Settings) -> None:
        """Checks what source did not tell, by importing it, before a rank starts; the ranks themselves need not.

        Raises:
            ConfigError: A target cannot be imported or called, or does not take its keywords.
        """
        if settings.unchecked and not self.place.is_ours:
            from automodel_cli.engine.config.check_targets import check_for_certain

            check_for_certain(config, settings.unchecked)

    def remember_code(self, config: Config, root: Path, say: render.Say) -> None:
        """Notes what a run is started with, once for all ranks of a machine, so that it goes on without a question."""
        from automodel_cli.engine.config.trust import remember_code

        if not self.place.is_ours and self.place.speaks and (problem := remember_code(config, root)):
            say(f"note: {problem}")

    def start(self, context: typer.Context, plan: LaunchPlan, until: float | None, *, timeout_minutes: float) -> None:
        """Runs this command line on every rank, until all have ended.

        Args:
            context: Of the command.
            plan: How many ranks, and where.
            until: When they must stop, see `stop_at`.
            timeout_minutes: How long a rank may let the others wait.

        Raises:
            RankFailedError: One of them failed.
            UsageError: The port at which the machines are to meet is taken.
        """
        check_port(plan)

        from automodel_cli.engine.distributed.agent import run_ranks

        if "--traceback" in sys.argv:  # a root option, which the ranks' command line does not have
            os.environ["AMCLI_TRACEBACK"] = "1"
        if until is not None:
            os.environ[_STOP_AT] = str(until)
        try:
            run_ranks(
                plan,
                [str(context.info_name), *own_arguments(context)],
                grace_seconds=GRACE_SECONDS,
                timeout_seconds=60 * timeout_minutes,
                say=render.speaker(as_json=True),
            )
        finally:
            os.environ.pop(_STOP_AT, None)


def ranks(
    config: Config,
    nproc_per_node: str | None,
    nnodes: str,
    node_rank: int | None,
    rdzv_endpoint: str,
    rdzv_backend: str,
    max_restarts: int,
) -> Ranks:
    """What the options and the environment say. Whoever was started as a rank joins, whatever the options say.

    Raises:
        UsageError: The options contradict each other.
    """
    place = rank_place()
    # srun starts one task per machine, and each of them its ranks, where both are asked for.
    if place.launcher and (place.launcher == "torchrun" or nproc_per_node is None):
        return Ranks(place, None)
    plan = launch_plan(
        nproc_per_node,
        nnodes=nnodes,
        node_rank=node_rank,
        rdzv_endpoint=rdzv_endpoint,
        rdzv_backend=rdzv_backend,
        max_restarts=max_restarts,
        device=str(config.get("device") or "auto"),
    )
    return Ranks(RankPlace(), plan)
