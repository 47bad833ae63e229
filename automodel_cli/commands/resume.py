"""`amcli resume`: continue a run from its checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from automodel_cli.commands import launching, render
from automodel_cli.commands.launching import (
    MaxRestartsOption,
    MaxTimeOption,
    NnodesOption,
    NodeRankOption,
    NprocOption,
    RdzvBackendOption,
    RdzvEndpointOption,
)
from automodel_cli.commands.options import (
    CheckpointArgument,
    ConfigOption,
    JsonOption,
    OverrideResumeOption,
    QuietOption,
    SetOption,
    TrustOption,
    UnsetOption,
    own_arguments,
)
from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.suggest import command

if TYPE_CHECKING:
    from pathlib import Path

    from automodel_cli.engine.checkpoint.snapshot import Snapshot
    from automodel_cli.engine.train.continuation import Continuation
    from automodel_cli.engine.train.recipe import RunSummary


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
    single values, and every change is said. What would make another run of it (the model, the
    seed, the batch, ...) changes only with --override-resume. A broken checkpoint is set aside, and the one
    before it is used.

    \b
    Examples:
      amcli resume
      amcli resume 200 --set step_scheduler.max_steps=600
      amcli resume runs/wide/step_000200 -c wide.yaml
      amcli resume --max-time 3h30m
    """
    from automodel_cli.engine.train.continuation import plan_resume

    until = launching.stop_at(max_time)
    plan = plan_resume(checkpoint, config, set_ or [], unset or [], override_resume or [], trust=trust_config)
    ranks = launching.ranks(plan.config, nproc_per_node, nnodes, node_rank, rdzv_endpoint, rdzv_backend, max_restarts)
    if ranks.world_size > 1:
        checked(plan.config, ranks.world_size)
    say = ranks.speaker(json_, quiet=quiet)
    render.changes(plan.changes, say)
    render.notes(plan.settings.notes, say)
    ranks.check_for_certain(plan.config, plan.settings)
    ranks.remember_code(plan.config, plan.root, say)
    if ranks.plan is not None:
        ranks.start(context, ranks.plan, until, timeout_minutes=plan.settings.dist_env.timeout_minutes)
        return
    continue_run(plan, ranks, until, context, as_json=json_, quiet=quiet)


def continue_run(
    plan: Continuation,
    ranks: launching.Ranks,
    until: float | None,
    context: typer.Context,
    *,
    as_json: bool,
    quiet: bool = False,
) -> None:
    """Trains on from the checkpoint of a plan, alone or among other ranks, and prints the summary."""
    # What only the checkpoint tells is said by the rank that reads it, whoever started that.
    say = render.speaker(as_json, quiet=quiet) if ranks.place.speaks else ranks.speaker(as_json)

    from automodel_cli.engine.train.preflight import on_ranks, owned

    with on_ranks(ranks.place, plan.settings, plan.root, lambda: owned(plan.settings.checkpoint, plan.root)) as group:
        from automodel_cli.engine.train import recipe
        from automodel_cli.engine.train.checkpoint_content import open_checkpoint

        resumed = open_checkpoint(plan, say, group)
        if resumed.is_finished:
            say(f"step {resumed.snapshot.step} of {plan.settings.step_scheduler.max_steps} is done: nothing to train")
            say(f"to train on: {_again(context, f'step_scheduler.max_steps={2 * resumed.snapshot.step}')}")
            if as_json and ranks.place.speaks:
                render.run_summary(_as_it_ended(resumed.snapshot, plan.root), as_json=True)
            return
        if plan.changes and (change := plan.schedule_change(resumed.snapshot.step)) is not None:
            say(f"changed  {change}")

        from automodel_cli.engine.observe.build import run_sink

        open_sink = run_sink(
            plan.config, plan.settings, plan.root, start_step=resumed.snapshot.step, quiet=as_json or quiet
        )
        summary = recipe.pretrain(
            plan.config, plan.settings, plan.root, ranks.sink(open_sink), group, until, resumed.snapshot
        )
    if ranks.place.speaks:
        render.run_summary(summary, as_json=as_json)


def _again(context: typer.Context, assignment: str) -> str:
    """This command once more, with another value; whatever it named, it names again."""
    words = own_arguments(context)
    options_end = words.index("--") if "--" in words else len(words)
    return command(context.info_name, *words[:options_end], "--set", assignment, *words[options_end:])


def _as_it_ended(snapshot: Snapshot, root: Path) -> RunSummary:
    """The summary of a run that was complete before this command: nothing was trained, so nothing took time."""
    from automodel_cli.engine.checkpoint.train_state import TrainState
    from automodel_cli.engine.train.recipe import RunSummary

    state = TrainState.from_dict(snapshot.train_state)
    return RunSummary(
        step=state.step,
        loss=state.loss,
        val_loss=state.val_loss,
        unigram_entropy_nats=None,
        tokens_seen=state.tokens_seen,
        tokens_per_second=0.0,
        seconds=0.0,
        checkpoint=root / "LATEST",
    )
