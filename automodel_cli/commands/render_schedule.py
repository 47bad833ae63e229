"""How `amcli config show --plot-lr` looks: the learning rate over the steps, drawn or as JSON."""

from __future__ import annotations

import json

import typer

from automodel_cli.commands.plot import can_show_braille, plot, sample_steps
from automodel_cli.engine.optim.lr_schedule import Schedule

_MOST_POINTS = 1000


def schedule(curve: Schedule, num_steps: int, tokens_per_step: int | None, *, as_json: bool) -> None:
    """Prints the curve of the updates 1 to `num_steps`.

    Args:
        curve: The schedule.
        num_steps: Steps of the run.
        tokens_per_step: For the label of the axis; None where nobody knows.
        as_json: `lr` is then a list of [step, rate] pairs, at most 1,000 of them.
    """
    if as_json:
        document = {
            "style": curve.style,
            "max_steps": num_steps,
            "tokens_per_step": tokens_per_step,
            **curve.phases,
            "lr": [[step + 1, curve.lr(step)] for step in sample_steps(num_steps, _MOST_POINTS)],
        }
        typer.echo(json.dumps(document))
        return
    end = f"step {num_steps:,}"
    if tokens_per_step is not None:
        end += f" ({num_steps * tokens_per_step:,} tokens)"
    typer.echo(f"learning rate: {curve.summary()}")
    for line in plot(curve.lr, num_steps, braille=can_show_braille(), x_labels=("1", end)):
        typer.echo(line)
