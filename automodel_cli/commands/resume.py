"""`amcli resume`: continue a run from its checkpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from automodel_cli.commands import render
from automodel_cli.commands.options import (
    CheckpointArgument,
    ConfigOption,
    JsonOption,
    SetOption,
    TrustOption,
    UnsetOption,
)


def resume(
    checkpoint: CheckpointArgument = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    unset: UnsetOption = None,
    override_resume: Annotated[
        list[str] | None,
        typer.Option(
            "--override-resume",
            metavar="KEY",
            help="Let a key change that makes another run of it, as often as wanted.",
            show_default=False,
        ),
    ] = None,
    trust_config: TrustOption = False,
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
    """
    from automodel_cli.engine.train.continuation import plan_resume

    plan = plan_resume(checkpoint, config, set_ or [], unset or [], override_resume or [], trust=trust_config)
    say = render.speaker(json_)
    render.changes(plan.changes, say)
    render.notes(plan.settings.notes, say)

    from automodel_cli.engine.train.preflight import owned

    with owned(plan.settings, plan.root):
        from automodel_cli.engine.train import recipe

        resumed = recipe.open_checkpoint(plan, say)
        if resumed.is_finished:
            say(f"step {resumed.snapshot.step} of {plan.settings.step_scheduler.max_steps} is done: nothing to train")
            say(f"to train on: amcli resume --set step_scheduler.max_steps={2 * resumed.snapshot.step}")
            return
        if plan.changes and (change := plan.schedule_change(resumed.snapshot.step)) is not None:
            say(f"changed  {change}")

        from automodel_cli.engine.observe.build import run_sink

        open_sink = run_sink(plan.config, plan.settings, plan.root, start_step=resumed.snapshot.step, quiet=json_)
        summary = recipe.resume(plan.config, plan.settings, plan.root, open_sink, resumed.snapshot)
    render.run_summary(summary, as_json=json_)
