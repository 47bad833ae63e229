"""What `amcli prep` shows: the list of presets, progress, and the summary."""

from __future__ import annotations

import glob
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from automodel_cli.commands import columns
from automodel_cli.engine.config.emit import setting
from automodel_cli.engine.config.load import builtin_config
from automodel_cli.engine.config.suggest import command, quoted
from automodel_cli.engine.prep.presets import PRESETS

if TYPE_CHECKING:
    from automodel_cli.engine.prep.estimate import Estimate
    from automodel_cli.engine.prep.prepare import PrepProgress, PrepResult
    from automodel_cli.engine.shards.manifest import DataManifest

# A line on a pipe at least so often, for sources whose end is not known.
_LINE_SECONDS = 60.0


def presets(*, as_json: bool) -> None:
    """Print the presets with their defaults."""
    if as_json:
        typer.echo(json.dumps([asdict(preset) for preset in PRESETS.values()], indent=2))
        return
    rows = [
        (preset.name, preset.hub.label if preset.hub else "in the package", preset.tokenizer, preset.description)
        for preset in PRESETS.values()
    ]
    columns.show(rows, first_to_go=(1, 2), text=[3])
    typer.echo("\nor files of your own: amcli prep 'books/*.txt'\nor any data set: amcli prep --dataset OWNER/NAME")


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

    from automodel_cli.engine.observe.console import FittedProgress

    # Transient: the summary that follows says the same with exact numbers.
    with FittedProgress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, before=f"preparing {source}", facts=[])

        def show(state: PrepProgress) -> None:
            done = [] if state.fraction is None else [f"{state.fraction:.0%}"]
            total = None if state.fraction is None else 1.0
            facts = [*done, *_time_left(state), *_facts(state)]
            bar.update(task, total=total, completed=state.fraction or 0.0, facts=facts)

        yield show


def _plain_lines(source: str) -> Callable[[PrepProgress], None]:
    shown_tenths, shown_at = 0, time.monotonic()

    def show(state: PrepProgress) -> None:
        nonlocal shown_tenths, shown_at
        tenths = int((state.fraction or 0.0) * 10)
        # The end has the summary; a line for it too would say everything twice.
        if shown_tenths < tenths < 10 or time.monotonic() - shown_at > _LINE_SECONDS:
            shown_tenths, shown_at = tenths, time.monotonic()
            done = [] if state.fraction is None else [f"{state.fraction:.0%}"]
            typer.echo(f"preparing {source}: {', '.join([*done, *_facts(state), *_time_left(state)])}", err=True)

    return show


def _facts(state: PrepProgress) -> list[str]:
    """The most important first."""
    return [
        f"{state.train_tokens + state.val_tokens:,} tokens of {state.num_documents:,} documents",
        f"{_short(state.tokens_per_second)} tokens/s",
        f"{state.text_bytes_per_second / 1e6:.1f} MB/s",
        f"{state.workers_busy}/{state.workers} workers busy",
        f"limited by {state.limited_by}",
    ]


def _time_left(state: PrepProgress) -> list[str]:
    return [] if state.seconds_left is None else [f"{duration(state.seconds_left)} left"]


def duration(seconds: float) -> str:
    """A time for people.

    >>> [duration(seconds) for seconds in (0.4, 75, 7300)]
    ['0 s', '1 min 15 s', '2 h 1 min']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def _short(number: float) -> str:
    """A number with its unit.

    >>> [_short(number) for number in (950, 12_345, 36_700_000)]
    ['950', '12.3 K', '36.7 M']
    """
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " K")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def note(text: str) -> None:
    """Say at once what cannot wait for the summary."""
    typer.echo(f"note: {text}", err=True)


def estimate(found: Estimate, *, as_json: bool) -> None:
    """Print what would be done."""
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    names = ", ".join(found.names[:3]) + (f" and {len(found.names) - 3} more" if len(found.names) > 3 else "")
    column = "" if found.text_column is None else f", column {found.text_column}"
    typer.echo(f"would read {names} ({found.kind}{column})")
    typer.echo(f"  tokenizer {found.tokenizer}, vocabulary {found.vocab_size:,}, by {found.engine}")
    if found.num_tokens is None or found.output_bytes is None or found.seconds is None:
        typer.echo("  tokens, bytes and time are not known: the source does not tell its size; give --max-tokens")
    else:
        typer.echo(
            f"  about {_short(found.num_tokens)} tokens, {_short(found.output_bytes)}B on disk, "
            f"{duration(found.seconds)}"
        )
    typer.echo(
        f"  estimated from {found.sample_documents:,} documents with {found.text_bytes_per_token:.2f} bytes per token"
    )
    _left_out(found.skipped, found.first_skipped)
    for text in found.notes:
        typer.echo(f"  note: {text}")
    typer.echo(f"would write to {found.directory}; nothing was written")


def _left_out(skipped: Mapping[str, int], first_skipped: Mapping[str, Mapping[str, str]]) -> None:
    for reason, count in skipped.items():
        first = first_skipped.get(reason)
        # Data of earlier versions do not say where the first is.
        found = (
            "" if first is None else f", the first at {first['where']}" + f": {first['found']}" * bool(first["found"])
        )
        typer.echo(f"  left out: {count:,} documents ({reason}){found}")


def result(prepared: PrepResult, *, verified: bool, as_json: bool) -> None:
    """Print what lies in the directory now, and the next command."""
    if as_json:
        facts = {
            "directory": str(prepared.directory),
            "reused": prepared.reused,
            "verified": verified,
            "notes": list(prepared.notes),
            "resumed_tokens": prepared.resumed_tokens,
            "seconds": prepared.seconds,
            "tokens_per_second": prepared.tokens_per_second,
            "stages": prepared.stages,
        }
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
    if manifest.reading is not None:
        _left_out(manifest.reading.skipped, manifest.reading.first_skipped)
    over_length = sum(split.over_length_documents for split in manifest.splits.values())
    if over_length:
        typer.echo(f"  {over_length:,} documents were longer than {manifest.settings['max_length']:,} tokens")
    if prepared.tokens_per_second:
        typer.echo(f"  {_short(prepared.tokens_per_second)} tokens/s for {duration(prepared.seconds)}")
    if verified:
        typer.echo("  every byte was read again and is as the manifest says")
    for text in prepared.notes:
        typer.echo(f"  note: {text}")
    typer.echo(f"next: {next_command(prepared.directory, prepared.manifest)}")


def next_command(directory: Path, manifest: DataManifest) -> str:
    """The command that trains the built-in model on a directory; for one of several parts, the one that joins them."""
    splits, settings = manifest.splits, manifest.settings
    if count := str(settings.get("partition") or "").partition("/")[2]:
        # All parts, where they will lie; the shell finds their names.
        parts = f"{quoted(directory.parent)}/part-*-of-{int(count):05d}"
        return f"{command('data', 'merge')} {parts} --output {quoted(directory.parent / 'whole')}"
    is_megatron = settings.get("format") == "megatron"
    is_builtin = directory == Path("data/shakespeare") and "val" in splits and manifest.tokenizer.name == "bytes"
    if is_builtin and not is_megatron:
        return command("pretrain")
    dataset = _megatron if is_megatron else _token_shards
    values = [dataset("dataset", directory, "train")]
    if "val" in splits:
        values.append(dataset("validation_dataset", directory, "val"))
    else:
        values += [("validation_dataset", None), ("step_scheduler.val_every_steps", None)]
    values.append(("model.vocab_size", manifest.tokenizer.vocab_size))
    return command("pretrain", *(word for key, value in values for word in ("--set", setting(key, value))))


_NO_TEXT = re.compile("[\ud800-\udfff]")
_MEGATRON_SPLITS = {"train": "train", "val": "validation"}


def _token_shards(section: str, directory: Path, split: str) -> tuple[str, Any]:
    return f"{section}.file_pattern", f"{_literally(directory)}/{split}_*.bin"


def _megatron(section: str, directory: Path, split: str) -> tuple[str, Any]:
    name = _MEGATRON_SPLITS[split]
    return section, {
        "_target_": "automodel_cli.engine.data.megatron_dataset.MegatronPretraining",
        "paths": {name: f"{_literally(directory)}/{split}_*"},
        "splits_to_build": name,
        "seq_length": builtin_config().get("dataset.seq_len"),
    }


def _literally(directory: Path) -> str:
    """A directory as the beginning of a pattern in a configuration, which gives `*`, `~` and `${` a meaning.

    >>> _literally(Path("a[1]/${b}/\\udcff"))
    'a[[]1]/[$]{b}/?'
    """
    place = directory.absolute() if str(directory).startswith("~") else directory
    # Bytes that are no text cannot stand in YAML.
    return _NO_TEXT.sub("?", glob.escape(str(place)).replace("${", "[$]{"))
