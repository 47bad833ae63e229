"""`amcli pretrain`: train a new model."""

from __future__ import annotations

from typing import Annotated

import typer

from automodel_cli.commands import render
from automodel_cli.commands.options import ConfigOption, JsonOption, SetOption, TrustOption, UnsetOption
from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.load import load_config


def pretrain(
    config: ConfigOption = None,
    set_: SetOption = None,
    unset: UnsetOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the checkpoints of the run that is in the directory.")
    ] = False,
    trust_config: TrustOption = False,
    json_: JsonOption = False,
) -> None:
    """Train a new model as the configuration says.

    Without -c it trains the built-in small GPT-2 on the embedded Shakespeare. Ctrl-C and
    SIGTERM save and stop (exit code 6); `amcli resume` goes on.

    \b
    Examples:
      amcli pretrain
      amcli pretrain -c nanogpt.yaml --set step_scheduler.max_steps=2000
      amcli pretrain -c nanogpt.yaml --model.n_layer 24 --optimizer.lr=3e-4
      amcli pretrain --set checkpoint.checkpoint_dir=runs/wide --set model.n_embd=384
    """
    final = load_config(config, set_ or (), unset or (), trust=trust_config)
    settings = checked(final)
    say = render.speaker(json_)
    render.notes(settings.notes, say)
    if not config:
        say("no -c given: this is the built-in configuration, a small GPT-2 on the embedded Shakespeare")
        say("for real data: amcli prep fineweb --max-tokens 2B, then amcli pretrain -c my.yaml (see examples/)")

    from automodel_cli.engine.train.preflight import ensure_embedded_corpus, new_run

    with new_run(settings, overwrite=overwrite) as root:
        ensure_embedded_corpus(final, say)

        from automodel_cli.engine.observe.build import run_sink
        from automodel_cli.engine.train import recipe

        summary = recipe.pretrain(final, settings, root, run_sink(final, settings, root, start_step=0, quiet=json_))
    render.run_summary(summary, as_json=json_)
