"""`amcli export` and `amcli import`: a checkpoint as a Hugging Face directory, and the other way round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from automodel_cli.commands import render
from automodel_cli.commands.options import CheckpointArgument, JsonOption, option
from automodel_cli.engine.config.emit import setting
from automodel_cli.engine.config.suggest import command


def export(
    checkpoint: CheckpointArgument = None,
    out: Annotated[Path | None, option("--out", "-o", help="Directory to write; exports/STEP unless given.")] = None,
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"] | None,
        typer.Option("--dtype", help="Type of the weights; unchanged unless given."),
    ] = None,
    max_shard_gb: Annotated[
        float, typer.Option("--max-shard-gb", min=0.001, help="Cut larger weights into files of this size.")
    ] = 5.0,
    no_check: Annotated[bool, typer.Option("--no-check", help="Do not load it and compare its logits.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model that is already there.")] = False,
    json_: JsonOption = False,
) -> None:
    """Write a checkpoint as a Hugging Face directory: weights, configuration, tokenizer, model card.

    transformers loads the result, and its logits are compared with the checkpoint's, before the
    directory gets its name.

    \b
    Examples:
      amcli export --out my-model
      amcli export runs/wide/BEST --out my-model --dtype bf16
    """
    from automodel_cli.engine.checkpoint.layout import resolve

    directory = resolve(checkpoint)
    say = render.speaker(as_json=True)  # standard output is kept for the result

    from automodel_cli.engine.exchange.export_checkpoint import export_checkpoint

    found = export_checkpoint(
        directory,
        out or Path("exports") / directory.name,
        dtype=dtype,
        max_shard_bytes=int(max_shard_gb * 10**9),
        check=not no_check,
        overwrite=overwrite,
        say=say,
    )
    render.notes(found.notes, say)
    if json_:
        keys = ("step", "num_parameters", "dtype", "files", "logit_difference")
        typer.echo(json.dumps({"directory": str(found.directory), **{key: getattr(found, key) for key in keys}}))
        return
    size = f"{found.num_parameters:,} parameters in {found.dtype}, {sum(found.files.values()):,} bytes"
    typer.echo(f"{found.directory}: step {found.step}, {size}")
    if found.logit_difference is not None:
        typer.echo(f"transformers loads it; its logits differ by at most {found.logit_difference:.1e} of the largest")
    typer.echo(f"next: AutoModelForCausalLM.from_pretrained({str(found.directory)!r})")


def import_(
    source: Annotated[Path, typer.Argument(help="A Hugging Face directory: config.json and weights.")],
    out: Annotated[
        Path | None, option("--out", "-o", help="Directory of checkpoints; imports/NAME unless given.")
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
        typer.echo(json.dumps({**vars(found), "directory": str(found.directory)}))
        return
    typer.echo(f"{found.directory}: {found.model_class}, {found.num_parameters:,} parameters, weights only")
    training = command("pretrain", "-c", "FILE", "-c", root, "--set", setting("checkpoint.init_from", str(root)))
    typer.echo(f"next: {command('sample' if found.tokenizer else 'inspect-ckpt', root)}\n  or: {training}")
