"""`amcli pretrain` and `amcli resume`: train a new model, or continue a run from its checkpoint."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from automodel_cli.commands import render
from automodel_cli.commands.options import (
    CheckpointArgument,
    ConfigOption,
    JsonOption,
    MaxRestartsOption,
    MaxTimeOption,
    NnodesOption,
    NodeRankOption,
    NprocOption,
    OverrideResumeOption,
    QuietOption,
    RdzvBackendOption,
    RdzvEndpointOption,
    SetOption,
    TrustOption,
    UnsetOption,
    YesOption,
    option,
    own_arguments,
)
from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.load import load_config
from automodel_cli.engine.config.suggest import command
from automodel_cli.engine.config.values import DurationError, in_seconds
from automodel_cli.engine.distributed.environment import RankPlace, rank_place
from automodel_cli.engine.distributed.launch_plan import LaunchPlan, check_port, launch_plan
from automodel_cli.errors import UsageError

if TYPE_CHECKING:
    from automodel_cli.engine.train.start import Start

# Room for the largest checkpoint that a disk takes in this time; torchrun's own 30 s are short for one.
GRACE_SECONDS = 120
# Tells the ranks, also those that are started again after a failure, when the whole run must stop.
_STOP_AT = "AMCLI_STOP_AT"


def pretrain(
    context: typer.Context,
    config: ConfigOption = None,
    set_: SetOption = None,
    unset: UnsetOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the checkpoints of the run that is in the directory.")
    ] = False,
    resume: Annotated[
        str | None,
        option(
            "--resume",
            metavar="auto",
            help="Continue the run that is in the directory, if there is one.",
            complete=lambda: ["auto"],
        ),
    ] = None,
    override_resume: OverrideResumeOption = None,
    yes: YesOption = False,
    trust_config: TrustOption = False,
    nproc_per_node: NprocOption = None,
    nnodes: NnodesOption = "1",
    node_rank: NodeRankOption = None,
    rdzv_endpoint: RdzvEndpointOption = "",
    rdzv_backend: RdzvBackendOption = "",
    max_restarts: MaxRestartsOption = 0,
    max_time: MaxTimeOption = None,
    quiet: QuietOption = False,
    json_: JsonOption = False,
) -> None:
    """Train a new model as the configuration says.

    Without -c it trains the built-in small GPT-2 on the embedded Shakespeare. Ctrl-C and
    SIGTERM save and stop (exit code 6); `amcli resume` goes on. SIGUSR1 saves and trains on.
    checkpoint.restore_from continues a checkpoint under this configuration.
    For jobs that are put back into a queue, --resume auto makes one command of both, and
    --max-time saves and stops before the queue's own limit.

    \b
    Examples:
      amcli pretrain
      amcli pretrain -c nanogpt.yaml --set step_scheduler.max_steps=2000
      amcli pretrain -c nanogpt.yaml --model.n_layer 24 --optimizer.lr=3e-4
      amcli pretrain --set checkpoint.checkpoint_dir=runs/wide --set model.n_embd=384
      amcli pretrain -c nanogpt.yaml --nproc-per-node 8
      amcli pretrain -c nanogpt.yaml --resume auto --max-time 3h30m
    """
    until = _stop_at(max_time)
    if resume not in (None, "auto"):
        raise UsageError(
            f"--resume is {resume!r}, but `auto` is all that it can be",
            help="`amcli resume CHECKPOINT` continues from a certain one",
        )
    if resume and overwrite:
        raise UsageError("--resume auto keeps the run that is there, and --overwrite deletes it: give one of them")
    final = load_config(config, set_ or (), unset or (), trust=trust_config)
    ranks = _ranks(final, nproc_per_node, nnodes, node_rank, rdzv_endpoint, rdzv_backend, max_restarts)
    settings = checked(final, ranks.world_size)
    say = ranks.speaker(json_, quiet=quiet)
    if not config:
        say("no -c given: this is the built-in configuration, a small GPT-2 on the embedded Shakespeare")
        say("for real data: amcli prep fineweb --max-tokens 2B, and amcli config init my.yaml --preset nanogpt-124m")

    from automodel_cli.engine.train.start import NewRun, start_of

    # Ranks that are started again after a failure continue from the last good checkpoint.
    continues = resume == "auto" or bool(ranks.place.restart_count)
    changes = (config, set_ or (), unset or (), override_resume or ())
    start = start_of(final, settings, *changes, trust=trust_config, overwrite=overwrite, continues=continues, say=say)
    if isinstance(start, NewRun) and start.deletes and ranks.asks:
        render.ask(f"delete the checkpoints and metrics of the run in {start.root}", yes=yes)
    _train(start, ranks, until, context, as_json=json_, quiet=quiet)


def resume(
    context: typer.Context,
    checkpoint: CheckpointArgument = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    unset: UnsetOption = None,
    override_resume: OverrideResumeOption = None,
    trust_config: TrustOption = False,
    nproc_per_node: NprocOption = None,
    nnodes: NnodesOption = "1",
    node_rank: NodeRankOption = None,
    rdzv_endpoint: RdzvEndpointOption = "",
    rdzv_backend: RdzvBackendOption = "",
    max_restarts: MaxRestartsOption = 0,
    max_time: MaxTimeOption = None,
    quiet: QuietOption = False,
    json_: JsonOption = False,
) -> None:
    """Continue a run from its checkpoint, bit for bit.

    The configuration is the checkpoint's own, or the files given with -c; --set changes
    single values, and every change is printed. Keys that make it another run (the model, the
    seed, the batch, ...) change only with --override-resume. A broken checkpoint is set aside, and the one
    before it is used.

    \b
    Examples:
      amcli resume
      amcli resume 200 --set step_scheduler.max_steps=600
      amcli resume runs/wide/step_000200 -c wide.yaml
      amcli resume --max-time 3h30m
    """
    from automodel_cli.engine.train.continuation import plan_resume

    until = _stop_at(max_time)
    plan = plan_resume(checkpoint, config, set_ or (), unset or (), override_resume or (), trust=trust_config)
    ranks = _ranks(plan.config, nproc_per_node, nnodes, node_rank, rdzv_endpoint, rdzv_backend, max_restarts)
    _train(plan, ranks, until, context, as_json=json_, quiet=quiet)


def _stop_at(max_time: str | None) -> float | None:
    """The moment of `time.monotonic()` at which to stop; all processes of a machine share this clock.

    Raises:
        UsageError: It is not a time.
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
class _Ranks:
    """The ranks that this command starts (`plan`), or its own place among ranks that are started already."""

    place: RankPlace
    plan: LaunchPlan | None

    @property
    def world_size(self) -> int:
        return self.plan.world_size if self.plan else self.place.world_size

    @property
    def asks(self) -> bool:
        """Whether this process may ask on the terminal: the others would ask the same."""
        return self.plan is not None or (self.place.world_size == 1 and not self.place.is_ours)

    def speaker(self, as_json: bool, *, quiet: bool) -> render.Say:
        """Where notes go: nowhere from a rank that is not the first, or whose launcher has said them."""
        return render.speaker(as_json, quiet=quiet or self.place.is_ours or not self.place.speaks)


def _ranks(
    config: Config,
    nproc_per_node: str | None,
    nnodes: str,
    node_rank: int | None,
    rdzv_endpoint: str,
    rdzv_backend: str,
    max_restarts: int,
) -> _Ranks:
    """What the options and the environment say. A process that was started as a rank joins, whatever the options say.

    Raises:
        UsageError: The options contradict each other.
    """
    place = rank_place()
    # srun starts one task per machine, and each of them its ranks, where both are asked for.
    if place.launcher and (place.launcher == "torchrun" or nproc_per_node is None):
        return _Ranks(place, None)
    plan = launch_plan(
        nproc_per_node,
        nnodes=nnodes,
        node_rank=node_rank,
        rdzv_endpoint=rdzv_endpoint,
        rdzv_backend=rdzv_backend,
        max_restarts=max_restarts,
        device=str(config.get("device") or "auto"),
    )
    return _Ranks(RankPlace(), plan)


def _train(
    start: Start, ranks: _Ranks, until: float | None, context: typer.Context, *, as_json: bool, quiet: bool
) -> None:
    """Prints the changes and notes; trains, or starts the ranks that train; prints the summary."""
    from automodel_cli.engine.train.start import Continuation, prepare, prepare_launch, train

    say = ranks.speaker(as_json, quiet=quiet)
    if isinstance(start, Continuation):
        if ranks.world_size > 1:
            checked(start.config, ranks.world_size)
        render.changes(start.changes, say)
    render.notes(start.settings.notes, say)
    prepare(start, ranks.place, say)
    if ranks.plan is not None:
        prepare_launch(start, say)
        _start_ranks(ranks.plan, until, context, timeout_minutes=start.settings.dist_env.timeout_minutes)
        return
    # What only the checkpoint or the data tells is printed by rank 0, under our launcher too.
    say = render.speaker(as_json, quiet=quiet or not ranks.place.speaks)
    outcome = train(start, ranks.place, until, say, quiet=as_json or quiet)
    if outcome.was_complete:
        step = outcome.summary.step
        say(f"step {step} of {start.settings.step_scheduler.max_steps} is done: nothing to train")
        say(f"to train on: {_again(context, f'step_scheduler.max_steps={2 * step}')}")
    if ranks.place.speaks and (as_json or not outcome.was_complete):
        render.run_summary(outcome.summary, as_json=as_json)


def _start_ranks(plan: LaunchPlan, until: float | None, context: typer.Context, *, timeout_minutes: float) -> None:
    """Runs this command line on every rank, until all have ended.

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


def _again(context: typer.Context, assignment: str) -> str:
    """The command line of this command, with one more assignment."""
    words = own_arguments(context)
    options_end = words.index("--") if "--" in words else len(words)
    return command(context.info_name, *words[:options_end], "--set", assignment, *words[options_end:])
