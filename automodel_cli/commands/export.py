"""`amcli export`: a checkpoint as a complete Hugging Face directory."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from automodel_cli.commands import render
from automodel_cli.commands.options import CheckpointArgument, JsonOption


class WeightType(StrEnum):
    """Types that exported weights can have."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


def export(
    checkpoint: CheckpointArgument = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Directory to write; exports/STEP unless given.", show_default=False),
    ] = None,
    dtype: Annotated[
        WeightType | None, typer.Option("--dtype", help="Type of the weights; theirs unless given.")
    ] = None,
    max_shard_gb: Annotated[
        float, typer.Option("--max-shard-gb", min=0.001, help="Cut larger weights into files of this size.")
    ] = 5.0,
    no_check: Annotated[bool, typer.Option("--no-check", help="Do not load it and compare its logits.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model that is there.")] = False,
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
        dtype=dtype.value if dtype else None,
        max_shard_bytes=int(max_shard_gb * 10**9),
        check=not no_check,
        overwrite=overwrite,
        say=say,
    )
    render.notes(found.notes, say)
    if json_:
        typer.echo(
            json.dumps(
                {
                    "directory": str(found.directory),
                    "step": found.step,
                    "num_parameters": found.num_parameters,
                    "dtype": found.dtype,
                    "files": found.files,
                    "logit_difference": found.logit_difference,
                }
            )
        )
        return
    size = f"{found.num_parameters:,} parameters in {found.dtype}, {sum(found.files.values()):,} bytes"
    typer.echo(f"{found.directory}: step {found.step}, {size}")
    if found.logit_difference is not None:
        typer.echo(f"transformers loads it; its logits differ by at most {found.logit_difference:.1e} of the largest")
    typer.echo(f"next: AutoModelForCausalLM.from_pretrained({str(found.directory)!r})")
