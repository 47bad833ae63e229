"""`amcli prep`: text to token shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from automodel_cli.commands import complete, render, render_prep
from automodel_cli.commands.options import JsonOption, QuietOption, YesOption
from automodel_cli.engine.prep.documents import (
    MAX_DOCUMENT_BYTES,
    OnBadDocument,
    SourceOptions,
    StdinFormat,
    TextDocuments,
)
from automodel_cli.engine.prep.options import (
    DEFAULT_CHUNK_SIZE,
    DEFAULT_SHARD_TOKENS,
    OverLength,
    PrepOptions,
    parse_partition,
    parse_token_count,
)
from automodel_cli.errors import UsageError


def prep(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE]...",
            help="A preset (see --list), files, patterns in quotes, or - for standard input.",
            autocompletion=complete.sources,
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="A data set on the Hugging Face hub.", show_default=False)
    ] = None,
    set_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its configuration, such as sample-10BT.", show_default=False)
    ] = None,
    split: Annotated[str | None, typer.Option(help="Its split.  [default: train]", show_default=False)] = None,
    revision: Annotated[
        str | None, typer.Option(help="Its branch, tag or commit.  [default: the newest]", show_default=False)
    ] = None,
    text_column: Annotated[
        str | None,
        typer.Option(help="Column or field that holds the text.  [default: text]", show_default=False),
    ] = None,
    text_documents: Annotated[
        TextDocuments | None,
        typer.Option(
            help="What is a document in a text file.  [default: file; a single file is cut]", show_default=False
        ),
    ] = None,
    stdin_format: Annotated[
        StdinFormat | None,
        typer.Option(help="What comes on standard input (`-`).  [default: seen by its first byte]", show_default=False),
    ] = None,
    max_document_bytes: Annotated[
        int, typer.Option(metavar="N", min=1, help="Longer documents are bad.")
    ] = MAX_DOCUMENT_BYTES,
    on_bad_doc: Annotated[
        OnBadDocument, typer.Option(help="Leave bad documents out and count them, or stop at the first.")
    ] = OnBadDocument.SKIP,
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
    bos: Annotated[bool, typer.Option("--bos/--no-bos", help="Begin each document with BOS.")] = True,
    bos_token: Annotated[
        str | None,
        typer.Option(metavar="TOKEN", help="Entry of the vocabulary to use as BOS.", show_default=False),
    ] = None,
    eos: Annotated[bool, typer.Option("--eos/--no-eos", help="End each document with EOS.")] = False,
    max_length: Annotated[
        int | None,
        typer.Option(metavar="N", help="Longest document in tokens, BOS and EOS included.", show_default=False),
    ] = None,
    over_length: Annotated[
        OverLength, typer.Option(help="Cut longer documents, or split them into several.")
    ] = OverLength.CUT,
    shuffle_buffer: Annotated[
        int, typer.Option(metavar="N", help="Shuffle within blocks of N documents; 0 keeps the order.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of the shuffling.")] = 0,
    output_dir: Annotated[
        Path | None, typer.Option(help="Where the shards go.  [default: data/<source>]", show_default=False)
    ] = None,
    shard_tokens: Annotated[
        str | None, typer.Option(metavar="N", help="Tokens per shard file.  [default: 100M]", show_default=False)
    ] = None,
    format_: Annotated[str, typer.Option("--format", help="bin, legacy (20240520) or megatron.")] = "bin",
    partition: Annotated[
        str | None,
        typer.Option(
            metavar="I/N", help="Prepare part I of N (from 0) into a directory of its own.", show_default=False
        ),
    ] = None,
    num_workers: Annotated[
        int | None, typer.Option(metavar="N", help="Threads that tokenize.  [default: cores]", show_default=False)
    ] = None,
    chunk_size: Annotated[int, typer.Option(metavar="N", help="Documents tokenized in one go.")] = DEFAULT_CHUNK_SIZE,
    prefetch: Annotated[
        int | None,
        typer.Option(metavar="N", help="Chunks in work or waiting.  [default: 4 per worker]", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace data that are there already.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte again when all is written.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and stop.")] = False,
    yes: YesOption = False,
    list_: Annotated[bool, typer.Option("--list", help="Show the presets and stop.")] = False,
    quiet: QuietOption = False,
    json_: JsonOption = False,
) -> None:
    """Prepare text as token shards for training.

    Finished data with the same settings are left alone; an interrupted run goes on where it was.
    How the work is divided (workers, chunks, prefetch) changes no byte of the result.

    \b
    Examples:
      amcli prep shakespeare
      amcli prep fineweb --max-tokens 500M --val-tokens 1M
      amcli prep --dataset HuggingFaceFW/fineweb --set-name sample-10BT --max-tokens 500M
      amcli prep 'books/*.txt' --tokenizer gpt2 --output-dir data/books
      amcli prep notes.jsonl --text-column body --tokenizer bytes --dry-run
      amcli prep --list
    """
    if list_:
        render_prep.presets(as_json=json_)
        return
    if not sources and dataset is None:
        raise UsageError("`amcli prep` needs a source", help="try `amcli prep shakespeare`, or `amcli prep --list`")
    options = PrepOptions(
        source=SourceOptions(
            sources=tuple(sources or ()),
            dataset=dataset,
            set_name=set_name,
            split=split,
            text_column=text_column,
            revision=revision,
            text_documents=text_documents,
            stdin_format=stdin_format,
            max_document_bytes=max_document_bytes,
            on_bad_document=on_bad_doc,
            on_wait=render_prep.note,
        ),
        max_tokens=None if max_tokens is None else parse_token_count(max_tokens),
        val_tokens=None if val_tokens is None else parse_token_count(val_tokens),
        tokenizer=tokenizer,
        output_dir=output_dir,
        shard_tokens=DEFAULT_SHARD_TOKENS if shard_tokens is None else parse_token_count(shard_tokens),
        format=format_,
        max_length=max_length,
        over_length=over_length,
        bos=bos,
        bos_token=bos_token,
        eos=eos,
        seed=seed,
        shuffle_buffer=shuffle_buffer,
        partition=None if partition is None else parse_partition(partition),
        chunk_size=chunk_size,
        num_workers=num_workers,
        prefetch=prefetch,
        overwrite=overwrite,
    )
    if dry_run:
        from automodel_cli.engine.prep.dry_run import estimate

        render_prep.estimate(estimate(options), as_json=json_)
        return

    from automodel_cli.engine.prep.plan import output_directory
    from automodel_cli.engine.prep.prepare import prepare

    directory = output_directory(options)
    if overwrite and directory.is_dir() and any(directory.iterdir()):
        render.ask(f"delete the data in {directory}", yes=yes)
    with render_prep.progress(", ".join(sources or [str(dataset)]), quiet=json_ or quiet) as on_progress:
        result = prepare(options, on_progress, render_prep.note)
    if verify:
        from automodel_cli.engine.prep.check_result import check_result

        check_result(result.directory)
    render_prep.result(result, verified=verify, as_json=json_)
