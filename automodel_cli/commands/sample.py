"""`amcli sample`: text from a checkpoint."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from automodel_cli import terminal
from automodel_cli.commands import complete
from automodel_cli.commands.options import CheckpointArgument, JsonOption, TrustOption, option


def sample(
    checkpoint: CheckpointArgument = None,
    prompt: Annotated[str, typer.Option("--prompt", help="Text to continue.")] = "",
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Maximum number of tokens to write.")
    ] = 400,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="0 always takes the most likely token.")
    ] = 0.8,
    top_k: Annotated[
        int, typer.Option("--top-k", min=0, help="Choose among the k most likely tokens; 0: among all.")
    ] = 50,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed writes the same text.")] = 0,
    tokenizer: Annotated[
        str | None,
        option("--tokenizer", help="Tokenizer to use instead of the recorded one.", complete=complete.tokenizers),
    ] = None,
    trust_config: TrustOption = False,
    json_: JsonOption = False,
) -> None:
    """Write text with a trained checkpoint.

    \b
    Examples:
      amcli sample
      amcli sample --prompt "HAMLET:" --max-new-tokens 200 --temperature 0.7
      amcli sample runs/wide/BEST --seed 3
      amcli sample --prompt "HAMLET:" --json | jq -r .text
    """
    from automodel_cli.engine.checkpoint.layout import resolve

    directory = resolve(checkpoint)
    terminal.quiet_libraries()

    from automodel_cli.engine.config.emit import steady
    from automodel_cli.engine.exchange.sampling import load_writer

    writer = load_writer(directory, tokenizer, trust=trust_config)
    pieces = writer.write(
        prompt, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k or None, seed=seed
    )
    if json_:
        document = {"checkpoint": str(directory), "seed": seed, "prompt": prompt, "text": "".join(pieces)}
        typer.echo(json.dumps(document, indent=2))
        return
    # A model writes what it was trained to write: on a terminal that may be no command to the terminal.
    shown = steady if sys.stdout.isatty() else str
    typer.echo(shown(prompt), nl=False)
    for piece in pieces:
        typer.echo(shown(piece), nl=False)
    typer.echo()
