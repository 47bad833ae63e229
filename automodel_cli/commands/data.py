"""`amcli data`: look at prepared data, check every byte, and join parts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from automodel_cli.commands.options import Group, JsonOption, option, working
from automodel_cli.errors import ExitCode

data_app = typer.Typer(cls=Group, rich_markup_mode=None, no_args_is_help=True)

DirectoryArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A directory of token shards.")]
BosOption = Annotated[
    int | None, option(metavar="ID", help="Id of the token that begins a document, if there is no manifest.")
]


@data_app.callback()
def data() -> None:
    """Look at prepared data, check every byte, and join parts.

    \b
    Examples:
      amcli data inspect data/shakespeare --doc 17
      amcli data verify data/shakespeare
      amcli data merge parts/* --output data/fineweb
    """


@data_app.command("verify")
@working
def verify(directory: DirectoryArgument, json_: JsonOption = False) -> None:
    """Read every byte and compare it with headers, indices and the manifest.

    Sizes, headers, SHA-256, the range of the token ids, the index of documents against the tokens, and
    all counts. Without a manifest the checks go as far as headers and indices tell. The exit code is 3
    if anything is wrong, and every problem is listed.

    \b
    Examples:
      amcli data verify data/fineweb
      amcli data verify data/fineweb --json | jq '.problems[].where'
    """
    from automodel_cli.commands import render_data
    from automodel_cli.engine.shards.verify import verify_directory

    with render_data.progress("verifying", quiet=json_) as on_progress:
        found = verify_directory(directory, on_progress)
    render_data.verification(found, as_json=json_)
    if found.problems:
        raise typer.Exit(ExitCode.DATA)


@data_app.command("inspect")
def inspect(
    directory: DirectoryArgument,
    doc: Annotated[int | None, option(metavar="N", min=0, help="Decode one document, counted from 0.")] = None,
    offset: Annotated[int | None, option(metavar="N", min=0, help="Decode the document that holds this token.")] = None,
    split: Annotated[str | None, option(help="Split in which --doc and --offset count.  [default: the first]")] = None,
    bos_token: BosOption = None,
    tokenizer: Annotated[str | None, option(help="Decode with this tokenizer instead of the manifest's.")] = None,
    json_: JsonOption = False,
) -> None:
    """Show what a directory of shards holds, or one document as text.

    The manifest, the lengths of documents as a histogram, and the most frequent tokens; works on shards
    of others too, as far as their headers and indices tell.

    \b
    Examples:
      amcli data inspect data/shakespeare
      amcli data inspect data/shakespeare --doc 17 --split val
      amcli data inspect downloaded --bos-token 50256 --tokenizer gpt2 --offset 1000000
    """
    from automodel_cli.commands import render_data
    from automodel_cli.engine.prep.read_back import read_back, tokenizer_of
    from automodel_cli.engine.shards.directory import open_directory
    from automodel_cli.engine.shards.survey import survey

    opened = open_directory(directory)
    if doc is not None or offset is not None:
        found = read_back(opened, split=split, number=doc, offset=offset, bos_id=bos_token, tokenizer=tokenizer)
        render_data.document(found, as_json=json_)
    else:
        render_data.survey(survey(opened, bos_token), tokenizer_of(opened, tokenizer), as_json=json_)


@data_app.command("merge")
@working
def merge(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="The parts, in any order.")],
    output: Annotated[Path, option(help="Directory for the result; must not exist yet.")],
    json_: JsonOption = False,
) -> None:
    """Join the parts that `amcli prep --partition i/N` wrote into one directory.

    All parts must be there, made with equal settings; every byte of them is verified first. Shards are
    linked where the file system can, so nothing is copied, and the parts stay as they are.

    \b
    Example:
      amcli data merge parts/* --output data/fineweb
    """
    from automodel_cli.commands import render_data
    from automodel_cli.engine.shards.merge import merge as merge_parts

    with render_data.progress("verifying", quiet=json_) as on_progress:
        merged = merge_parts(directories, output, on_progress)
    render_data.merged(merged, as_json=json_)
