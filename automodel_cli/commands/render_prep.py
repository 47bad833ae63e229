"""What `amcli prep` shows: the list of presets, progress, and the summary."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from automodel_cli.engine.prep.presets import PRESETS

if TYPE_CHECKING:
    from automodel_cli.engine.prep.prepare import PrepProgress, PrepResult


def presets(*, as_json: bool) -> None:
    """Print the presets with their defaults."""
    if as_json:
        typer.echo(json.dumps([asdict(preset) for preset in PRESETS.values()], indent=2))
        return
    for preset in PRESETS.values():
        typer.echo(f"{preset.name:<12} {preset.description} (tokenizer {preset.tokenizer})")
    typer.echo("\nor files of your own: amcli prep 'books/*.txt'")


@contextmanager
def progress(source: str, *, quiet: bool) -> Iterator[Callable[[PrepProgress], None]]:
    """Show progress while the body runs: a bar on a terminal, else a line every tenth of the way."""
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _bar(source) as show:
            yield show
    else:
        yield _plain_lines(source)


@contextmanager
def _bar(source: str) -> Iterator[Callable[[PrepProgress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[tokens]}"),
        TimeRemainingColumn(),
    )
    # Transient: the summary that follows says the same with exact numbers.
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"preparing {source}", total=None, tokens="")

        def show(state: PrepProgress) -> None:
            total = None if state.fraction is None else 1.0
            bar.update(task, total=total, completed=state.fraction or 0.0, tokens=_tokens(state))

        yield show


def _plain_lines(source: str) -> Callable[[PrepProgress], None]:
    shown_tenths = 0

    def show(state: PrepProgress) -> None:
        nonlocal shown_tenths
        tenths = int((state.fraction or 0.0) * 10)
        # The end has the summary; a line for it too would say everything twice.
        if shown_tenths < tenths < 10:
            shown_tenths = tenths
            typer.echo(f"preparing {source}: {tenths * 10}%, {_tokens(state)}", err=True)

    return show


def _tokens(state: PrepProgress) -> str:
    return f"{state.train_tokens + state.val_tokens:,} tokens"


def result(prepared: PrepResult, *, as_json: bool) -> None:
    """Print what lies in the directory now, and the next command."""
    if as_json:
        facts = {"directory": str(prepared.directory), "reused": prepared.reused, "notes": list(prepared.notes)}
        typer.echo(json.dumps({**facts, "manifest": prepared.manifest.to_dict()}, indent=2))
        return
    manifest = prepared.manifest
    state = "is there already, made with the same settings" if prepared.reused else "is ready"
    typer.echo(f"{prepared.directory} {state}")
    typer.echo(f"  tokenizer {manifest.tokenizer.name}, vocabulary {manifest.tokenizer.vocab_size:,}")
    for name, split in manifest.splits.items():
        shards = "1 shard" if len(split.shards) == 1 else f"{len(split.shards)} shards"
        typer.echo(
            f"  {name:<5} {split.num_tokens:>12,} tokens, {split.num_documents:,} documents, {shards}, "
            f"unigram entropy {split.unigram_entropy_nats:.3f} nats"
        )
    for note in prepared.notes:
        typer.echo(f"  note: {note}")
    typer.echo(f"next: {_next_command(prepared)}")


def _next_command(prepared: PrepResult) -> str:
    if prepared.directory.as_posix() == "data/shakespeare" and prepared.manifest.tokenizer.name == "bytes":
        return "amcli pretrain"
    splits = prepared.manifest.splits
    validation = f".file_pattern='{prepared.directory}/val_*.bin'" if "val" in splits else "=null"
    return (
        f"amcli pretrain --set dataset.file_pattern='{prepared.directory}/train_*.bin' "
        f"--set validation_dataset{validation} --set model.vocab_size={prepared.manifest.tokenizer.vocab_size}"
    )
