"""What `amcli data` shows: progress, problems, histograms and documents."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from automodel_cli.commands import columns
from automodel_cli.commands.columns import printable
from automodel_cli.commands.render_prep import duration, next_command

if TYPE_CHECKING:
    from automodel_cli.engine.prep.read_back import DecodedDocument
    from automodel_cli.engine.prep.tokenizer import Tokenizer
    from automodel_cli.engine.shards.merge import Merged
    from automodel_cli.engine.shards.survey import SplitSurvey, Survey
    from automodel_cli.engine.shards.verify import Verification, VerifyProgress

_BAR_CELLS = 40
_SHOWN_TEXT = 24


@contextmanager
def progress(verb: str, *, quiet: bool) -> Iterator[Callable[[VerifyProgress], None]]:
    """Shows on standard error how many bytes are done: a bar on a terminal, else a line every tenth."""
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _bar(verb) as show:
            yield show
    else:
        yield _plain_lines(verb)


@contextmanager
def _bar(verb: str) -> Iterator[Callable[[VerifyProgress], None]]:
    from rich.console import Console

    from automodel_cli.engine.observe.console import FittedProgress

    began = time.monotonic()
    with FittedProgress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, before=verb, facts=[])

        def show(state: VerifyProgress) -> None:
            speed = state.done_bytes / max(time.monotonic() - began, 1e-3)
            left = (state.total_bytes - state.done_bytes) / max(speed, 1.0)
            done = f"{state.done_bytes / 1e6:,.1f} / {state.total_bytes / 1e6:,.1f} MB"
            facts = [done, duration(left) + " left", f"{speed / 1e6:,.1f} MB/s"]
            bar.update(task, total=state.total_bytes, completed=state.done_bytes, facts=facts)

        yield show


def _plain_lines(verb: str) -> Callable[[VerifyProgress], None]:
    shown_tenths = 0

    def show(state: VerifyProgress) -> None:
        nonlocal shown_tenths
        tenths = state.done_bytes * 10 // max(state.total_bytes, 1)
        # The summary follows at the end.
        if shown_tenths < tenths < 10:
            shown_tenths = tenths
            typer.echo(f"{verb}: {tenths * 10}%, {state.done_bytes:,} bytes", err=True)

    return show


def verification(found: Verification, *, as_json: bool) -> None:
    """Prints every problem, and a summary."""
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    for problem in found.problems:
        typer.echo(f"{problem.kind:<11}  {problem.where}: {problem.message}")
    if found.note is not None:
        typer.echo(f"note: {found.note}")
    read = f"{_shards(found.num_shards)}, {found.num_tokens:,} tokens, {found.num_bytes:,} bytes"
    against = "headers, indices and manifest" if found.has_manifest else "headers and indices; there is no manifest"
    if not found.problems:
        typer.echo(f"{found.directory} is sound: {read}, compared with {against}")
    else:
        count = "1 problem" if len(found.problems) == 1 else f"{len(found.problems)} problems"
        typer.echo(f"{found.directory} has {count}: {read}, compared with {against}")


def merged(result: Merged, *, as_json: bool) -> None:
    """Prints what was joined, and the next command."""
    if as_json:
        facts = {"directory": str(result.directory), "num_parts": result.num_parts, "num_linked": result.num_linked}
        notes = {"notes": list(result.notes)}
        typer.echo(json.dumps({**facts, **notes, "manifest": result.manifest.to_dict()}, indent=2))
        return
    typer.echo(f"{result.directory} is ready: {result.num_parts} parts, {result.num_linked} files linked")
    for name, split in result.manifest.splits.items():
        count = f"{split.num_tokens:>14,} tokens, {split.num_documents:,} documents, {_shards(len(split.shards))}"
        typer.echo(f"  {name:<5} {count}")
    for text in result.notes:
        typer.echo(f"  note: {text}")
    typer.echo(f"next: {next_command(result.directory, result.manifest)}")


def document(found: DecodedDocument, *, as_json: bool) -> None:
    """Prints where a document lies, and its text or, without a tokenizer, its tokens."""
    if as_json:
        typer.echo(json.dumps(found.to_dict()))
        return
    where = f"document {found.number:,} of {found.split}: {found.shard}, token {found.offset:,}"
    # On standard error, so that a pipe gets only the text.
    typer.echo(f"{where}, {len(found.token_ids):,} tokens", err=True)
    if found.text is None:
        typer.echo("no tokenizer is known (--tokenizer names one); its token ids are", err=True)
        typer.echo(" ".join(map(str, found.token_ids)))
    else:
        typer.echo(printable(found.text, keep="\n\t") if sys.stdout.isatty() else found.text)


def survey(found: Survey, tokenizer: Tokenizer | None, *, as_json: bool) -> None:
    """Prints everything about a directory; tokens as text if a tokenizer is known."""
    if as_json:
        values = found.to_dict()
        for split in values["splits"].values():
            for token in split["top_tokens"]:
                token["text"] = _text(tokenizer, token["token_id"])
        typer.echo(json.dumps(values, indent=2))
        return
    typer.echo(found.directory)
    if found.manifest is None:
        typer.echo("  no manifest.json: what follows is what headers, indices and tokens say")
    else:
        _lines({key: value for key, value in found.manifest.items() if key != "splits"}, indent=1)
    for name, split in found.splits.items():
        _split(name, split, (found.manifest or {}).get("splits", {}).get(name), tokenizer)


def _split(name: str, split: SplitSurvey, record: dict[str, Any] | None, tokenizer: Tokenizer | None) -> None:
    sizes = " and ".join(f"{size} bytes" for size in split.token_bytes)
    documents = "" if split.num_documents is None else f", {split.num_documents:,} documents"
    form = ", ".join(split.formats)
    head = f"{name}: {split.num_tokens:,} tokens{documents}, {_shards(split.num_shards)}, {form}, {sizes} a token"
    typer.echo("\n" + "\n".join(columns.wrapped(head, columns.room(), "  ")))
    if record is not None:
        _lines({key: value for key, value in record.items() if key != "shards"}, indent=1)
        for shard in record["shards"]:
            facts = f"{shard['num_tokens']:,} tokens, {shard['num_bytes']:,} bytes, largest id {shard['max_token_id']}"
            typer.echo("\n".join(columns.wrapped(f"  {shard['name']}  {facts}", columns.room(), "    ")))
            typer.echo("\n".join(columns.wrapped(f"    sha256 {shard['sha256']}", columns.room(), "    ")))
    if split.lengths:
        typer.echo(f"\n  tokens per document, median {split.median_document_tokens:,.0f}")
        _histogram(split)
    if split.top_tokens:
        typer.echo(f"\n  most frequent of {split.counted_tokens:,} tokens")
        columns.show(
            [
                (
                    f"{token.token_id:>11}",
                    f"{token.count:>14,}",
                    f"{token.share:7.3%}",
                    _shown(tokenizer, token.token_id),
                )
                for token in split.top_tokens
            ],
            first_to_go=(3, 2),
        )


def _histogram(split: SplitSurvey) -> None:
    largest = max(found.num_documents for found in split.lengths)
    width = len(f"{split.lengths[-1].to_tokens:,}")
    rows = [
        (f"  {found.from_tokens:>{width},} to {found.to_tokens:>{width},}", f"{found.num_documents:>11,}")
        for found in split.lengths
    ]
    limit = columns.room()
    room = (
        _BAR_CELLS
        if limit is None
        else min(_BAR_CELLS, limit - max(len(span) + len(count) for span, count in rows) - 4)
    )
    for (span, count), found in zip(rows, split.lengths, strict=True):
        # Rounded up: a bin with a single document among millions is not empty.
        typer.echo(f"{span}  {count}  {'█' * -(-found.num_documents * room // largest)}".rstrip())


def _lines(values: dict[str, Any], indent: int) -> None:
    """Prints nested values, one a line."""
    columns.show(list(_rows(values, indent)), text=[1])


def _rows(values: dict[str, Any], indent: int) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{'  ' * indent}{key}"
        if isinstance(value, dict) and value:
            yield name, ""
            yield from _rows(value, indent + 1)
        else:
            yield name, printable(f"{value:,}" if type(value) is int else "-" if value in (None, {}) else str(value))


def _text(tokenizer: Tokenizer | None, token_id: int) -> str | None:
    if tokenizer is None or token_id >= tokenizer.vocab_size:
        return None
    return "(begins a document)" if token_id == tokenizer.bos_id else tokenizer.decode([token_id])


def _shown(tokenizer: Tokenizer | None, token_id: int) -> str:
    text = _text(tokenizer, token_id)
    return "" if text is None else repr(text[:_SHOWN_TEXT])


def _shards(count: int) -> str:
    return "1 shard" if count == 1 else f"{count} shards"
