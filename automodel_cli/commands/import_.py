"""`amcli import`: a Hugging Face directory as a checkpoint to start from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from automodel_cli.commands.options import JsonOption
from automodel_cli.engine.config.emit import setting
from automodel_cli.engine.config.suggest import command


def import_(
    source: Annotated[Path, typer.Argument(help="A Hugging Face directory: config.json and weights.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Directory of checkpoints; imports/NAME unless given.", show_default=False),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Make a checkpoint of a Hugging Face directory: weights only, to sample or to start a run from.

    No code that lies in the directory is run. GPT-2 becomes amcli's own model, other
    architectures stay the class of transformers.

    \b
    Examples:
      amcli import downloads/gpt2 --out runs/gpt2
      amcli sample runs/gpt2 --prompt "Once upon a time"
      amcli pretrain -c my.yaml -c runs/gpt2 --set checkpoint.init_from=runs/gpt2
    """
    root = out or Path("imports") / source.resolve().name

    from automodel_cli.engine.exchange.import_model import import_model

    found = import_model(source, root)
    if json_:
        typer.echo(
            json.dumps(
                {
                    "directory": str(found.directory),
                    "model_class": found.model_class,
                    "num_parameters": found.num_parameters,
                    "tokenizer": found.tokenizer,
                }
            )
        )
        return
    typer.echo(f"{found.directory}: {found.model_class}, {found.num_parameters:,} parameters, weights only")
    training = command("pretrain", "-c", "FILE", "-c", root, "--set", setting("checkpoint.init_from", str(root)))
    typer.echo(f"next: {command('sample' if found.tokenizer else 'inspect-ckpt', root)}\n  or: {training}")
