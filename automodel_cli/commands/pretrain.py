"""`amcli pretrain`: train a new model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from automodel_cli.commands import consent, launching, render
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
    ConfigOption,
    JsonOption,
    OverrideResumeOption,
    QuietOption,
    SetOption,
    TrustOption,
    UnsetOption,
    YesOption,
)
from automodel_cli.commands.resume import continue_run
from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.load import load_config
from automodel_cli.errors import UsageError

if TYPE_CHECKING:
    from automodel_cli.engine.train.continuation import Continuation


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
        typer.Option(
            "--resume",
            metavar="auto",
            help="Continue the run that is in the directory, if there is one.",
            show_default=False,
            autocompletion=lambda: ["auto"],
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
    until = launching.stop_at(max_time)
    if resume not in (None, "auto"):
        raise UsageError(
            f"--resume is {resume!r}, but `auto` is all that it can be",
            help="`amcli resume CHECKPOINT` continues from a certain one",
        )
    if resume and overwrite:
        raise UsageError("--resume auto keeps the run that is there, and --overwrite deletes it: give one of them")
    final = load_config(config, set_ or (), unset or (), trust=trust_config)
    ranks = launching.ranks(final, nproc_per_node, nnodes, node_rank, rdzv_endpoint, rdzv_backend, max_restarts)
    settings = checked(final, ranks.world_size)
    restores = settings.checkpoint.restore_from is not None
    if restores and overwrite:
        raise UsageError("checkpoint.restore_from goes on with a run, and --overwrite deletes one: give one of them")
    if override_resume and not restores:
        raise UsageError(
            "--override-resume is about the run that checkpoint.restore_from continues, and that is not set",
            help="`amcli resume` takes it, too",
        )
    say = ranks.speaker(json_, quiet=quiet)
    render.notes(settings.notes, say)
    ranks.check_for_certain(final, settings)
    if not config:
        say("no -c given: this is the built-in configuration, a small GPT-2 on the embedded Shakespeare")
        say("for real data: amcli prep fineweb --max-tokens 2B, and amcli config init my.yaml --preset nanogpt-124m")

    from automodel_cli.engine.train.preflight import check_new_run, ensure_embedded_corpus, new_run, on_ranks, run_begun

    root = Path(settings.checkpoint.checkpoint_dir)
    is_first = ranks.plan is not None or (ranks.place.world_size == 1 and not ranks.place.is_ours)
    if overwrite and is_first and run_begun(settings.checkpoint):
        consent.ask(f"delete the checkpoints and metrics of the run in {root}", yes=yes)
    # Started again after a failure: from the last good checkpoint, not from the beginning.
    goes_on = (resume == "auto" or bool(ranks.place.restart_count)) and run_begun(settings.checkpoint)
    plan: Continuation | None = None
    if goes_on:
        from automodel_cli.engine.train.continuation import plan_resume

        plan = plan_resume(root, config, set_ or [], unset or [], trust=trust_config)
    elif restores:
        from automodel_cli.engine.train.continuation import plan_restore

        plan = plan_restore(final, settings, override_resume or [], trust=trust_config)
        if plan is None:
            say(f"checkpoint.restore_from is LATEST, and {root} holds no checkpoint: a new run")
    if plan is not None:
        render.changes(plan.changes, say)
    ranks.remember_code(final if plan is None else plan.config, root, say)
    if ranks.plan is not None:
        if plan is None:
            check_new_run(settings.checkpoint, overwrite=overwrite)
            ensure_embedded_corpus(final, say)
        ranks.start(context, ranks.plan, until, timeout_minutes=settings.dist_env.timeout_minutes)
        return
    if plan is not None:
        continue_run(plan, ranks, until, context, as_json=json_, quiet=quiet)
        return

    @contextmanager
    def prepared() -> Iterator[None]:
        with new_run(settings.checkpoint, overwrite=overwrite):
            ensure_embedded_corpus(final, say)
            yield

    with on_ranks(ranks.place, settings, root, prepared) as group:
        from automodel_cli.engine.observe.run_sinks import run_sink
        from automodel_cli.engine.train import recipe

        sink = ranks.sink(run_sink(final, settings, root, start_step=0, quiet=json_ or quiet))
        summary = recipe.pretrain(final, settings, root, sink, group, until)
    if ranks.place.speaks:
        render.run_summary(summary, as_json=json_)
