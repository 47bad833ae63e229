"""`amcli prep`: text to token shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from automodel_cli.commands import complete, render_prep
from automodel_cli.commands.options import JsonOption
from automodel_cli.engine.prep.options import DEFAULT_SHARD_TOKENS, PrepOptions, parse_token_count
from automodel_cli.errors import UsageError


def prep(
    source: Annotated[
        str | None,
        typer.Argument(
            help="A preset (see --list), a .txt or .jsonl file, or a pattern in quotes.",
            autocompletion=complete.sources,
        ),
    ] = None,
    max_tokens: Annotated[
        str | None,
        typer.Option(metavar="N", help="Exact size of the training split: 500M, 2B, 1.5e9.", show_default=False),
    ] = None,
    val_tokens: Annotated[
        str | None,
        typer.Option(metavar="N", help="Hold out whole documents of about N tokens; 0 none.", show_default=False),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="bytes, gpt2, a directory, or a name on the Hugging Face hub.",
            show_default=False,
            autocompletion=complete.tokenizers,
        ),
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Where the shards go.  [default: data/<source>]", show_default=False)
    ] = None,
    shard_tokens: Annotated[
        str | None, typer.Option(metavar="N", help="Tokens per shard file.  [default: 100M]", show_default=False)
    ] = None,
    text_column: Annotated[str, typer.Option(help="Field of a JSON line or a row that holds the text.")] = "text",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace data that are there already.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Show the presets and stop.")] = False,
    json_: JsonOption = False,
) -> None:
    """Prepare text as token shards for training.

    Finished data with the same settings are left alone; an interrupted run is started again.

    \b
    Examples:
      amcli prep shakespeare
      amcli prep fineweb --max-tokens 500M --val-tokens 1M
      amcli prep 'books/*.txt' --tokenizer gpt2 --output-dir data/books
      amcli prep notes.jsonl --text-column body --tokenizer bytes
      amcli prep --list
    """
    if list_:
        render_prep.presets(as_json=json_)
        return
    if source is None:
        raise UsageError("`amcli prep` needs a source", help="try `amcli prep shakespeare`, or `amcli prep --list`")
    options = PrepOptions(
        source=source,
        max_tokens=None if max_tokens is None else parse_token_count(max_tokens),
        val_tokens=None if val_tokens is None else parse_token_count(val_tokens),
        tokenizer=tokenizer,
        output_dir=output_dir,
        shard_tokens=DEFAULT_SHARD_TOKENS if shard_tokens is None else parse_token_count(shard_tokens),
        text_column=text_column,
        overwrite=overwrite,
    )

    from automodel_cli.engine.prep.prepare import prepare

    with render_prep.progress(source, quiet=json_) as on_progress:
        result = prepare(options, on_progress)
    render_prep.result(result, as_json=json_)
