"""Joins the directories that the parts of one preparation wrote (`--partition i/N`) into one.

Guarantees: the parts are of one source, with equal settings and the same tokenizer; none is missing and
none is given twice; every byte of every part was compared with its manifest before anything is written.
Shards are linked, not copied, where the file system can, so a merge needs no space; the parts stay as
they are. `manifest.json` comes last: a merge that was interrupted leaves nothing that looks finished.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from automodel_cli.engine.config.suggest import command
from automodel_cli.engine.durable import (
    explain_write_errors,
    replace_durably,
    sync_directory,
    sync_file,
    temporary_path,
)
from automodel_cli.engine.shards.directory import ShardDirectory, open_directory
from automodel_cli.engine.shards.formats import FORMATS
from automodel_cli.engine.shards.manifest import DataManifest, ReadingRecord, ShardRecord, SplitRecord, write_manifest
from automodel_cli.engine.shards.scan import sum_counts, unigram_entropy_nats
from automodel_cli.engine.shards.tokens import Int64Array
from automodel_cli.engine.shards.verify import OnProgress, Verifier, VerifyProgress
from automodel_cli.engine.shards.writer import shard_name
from automodel_cli.errors import DataError, UsageError

PARTITION_SETTING = "partition"

_PARTITION = re.compile(r"(\d+)/(\d+)")


@dataclass(frozen=True)
class Merged:
    """What a merge made.

    Attributes:
        directory: Where it lies.
        manifest: Describes all parts together.
        num_parts: Directories that were joined.
        num_linked: Files that share their space with the parts; the others were copied.
        notes: What the user should know, such as fewer tokens than were asked for.
    """

    directory: Path
    manifest: DataManifest
    num_parts: int
    num_linked: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Part:
    directory: ShardDirectory
    manifest: DataManifest
    number: int
    of: int


def merge(paths: Sequence[Path], output: Path, on_progress: OnProgress = lambda _: None) -> Merged:
    """Join directories into a new one.

    Args:
        paths: One directory for each part, in any order.
        output: Does not exist yet, or is empty.
        on_progress: Called with the number of bytes that were verified, of all parts together.

    Raises:
        UsageError: There are no parts, or the output is not empty.
        DataError: A part has no manifest, is damaged, is missing or given twice, or its settings differ.
    """
    if not paths:
        raise UsageError("`amcli data merge` needs the directories of the parts")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} is not an empty directory", help="choose an --output that does not exist yet")
    parts = sorted((_open_part(path) for path in paths), key=lambda part: part.number)
    _check_complete(parts)
    for part in parts[1:]:
        _check_equal(parts[0], part)
    counts = _verify(parts, on_progress)
    with explain_write_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    names = [name for name in parts[0].manifest.splits] + [
        name for part in parts[1:] for name in part.manifest.splits if name not in parts[0].manifest.splits
    ]
    splits, num_linked = {}, 0
    for name in dict.fromkeys(names):
        records, linked = _place_shards(parts, name, output)
        num_linked += linked
        splits[name] = _join([part.manifest.splits[name] for part in parts if name in part.manifest.splits], records)
        splits[name] = replace(splits[name], unigram_entropy_nats=unigram_entropy_nats(counts[name]))
    settings = {key: value for key, value in parts[0].manifest.settings.items() if key != PARTITION_SETTING}
    manifest = replace(
        parts[0].manifest,
        settings={**settings, "merged_parts": len(parts)},
        splits=splits,
        reading=_join_readings([part.manifest.reading for part in parts]),
    )
    write_manifest(output, manifest)
    return Merged(output, manifest, len(parts), num_linked, tuple(_notes(parts, manifest)))


def _open_part(path: Path) -> _Part:
    directory = open_directory(path)
    if directory.manifest is None:
        raise DataError(
            "the directory has no manifest.json, so its preparation did not finish",
            where=str(path),
            help="run that part of `amcli prep --partition i/N` again",
        )
    written = directory.manifest.settings.get(PARTITION_SETTING)
    match = _PARTITION.fullmatch(str(written))
    if match is None:
        raise DataError(
            "the directory is not a part of a preparation: its manifest names no partition",
            where=str(path),
            help="`amcli prep --partition i/N` makes parts; several whole directories are read as a list of patterns",
        )
    return _Part(directory, directory.manifest, int(match[1]), int(match[2]))


def _check_complete(parts: Sequence[_Part]) -> None:
    of = parts[0].of
    for before, part in pairwise(parts):
        if part.of != of:
            message = f"it is part {part.number}/{part.of}, but {parts[0].directory.path} is one of {of}"
            raise DataError(message, where=str(part.directory.path))
        if part.number == before.number:
            message = f"it is part {part.number}/{of}, and so is {before.directory.path}"
            raise DataError(message, where=str(part.directory.path))
    numbers = {part.number for part in parts}
    missing = [number for number in range(of) if number not in numbers]
    if missing:
        named = ", ".join(f"{number}/{of}" for number in missing)
        raise DataError(
            f"{len(missing)} of {of} parts are missing: {named}", help="prepare those parts, or name their directories"
        )


def _check_equal(first: _Part, part: _Part) -> None:
    """Refuse a part that was made otherwise."""
    ours, theirs = _identity(first.manifest), _identity(part.manifest)
    differing = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if differing:
        shown = "; ".join(f"{name} is {theirs.get(name)!r} and {ours.get(name)!r} there" for name in differing)
        raise DataError(
            f"the part was made with other settings than {first.directory.path}: {shown}",
            where=str(part.directory.path),
            help="prepare all parts with one and the same command, but for i in --partition i/N",
        )


def _identity(manifest: DataManifest) -> dict[str, Any]:
    """All that must be equal: what was read, the tokenizer, and the settings but for the part's own number."""
    settings = {key: value for key, value in manifest.settings.items() if key != PARTITION_SETTING}
    tokenizer = manifest.tokenizer
    return {
        "source": manifest.source.name,
        "revision": manifest.source.revision,
        "tokenizer": tokenizer.name,
        "tokenizer sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        **settings,
    }


def _verify(parts: Sequence[_Part], on_progress: OnProgress) -> dict[str, Int64Array]:
    """Compare every byte of every part; the occurrences of each id in each split, over all parts."""
    sizes = [
        sum(shard.num_bytes for split in part.manifest.splits.values() for shard in split.shards) for part in parts
    ]
    counts: dict[str, Int64Array] = {}
    for number, part in enumerate(parts):
        done = sum(sizes[:number])

        def report(state: VerifyProgress, done: int = done) -> None:
            on_progress(VerifyProgress(done + state.done_bytes, sum(sizes)))

        verifier = Verifier(part.directory, report)
        found = verifier.run()
        if found.problems:
            first = found.problems[0]
            raise DataError(
                f"the part is damaged: {first.where}: {first.message}",
                where=str(part.directory.path),
                help=f"`{command('data', 'verify', part.directory.path)}` lists all {len(found.problems)} problems",
            )
        for name, values in verifier.counts.items():
            counts[name] = sum_counts(counts.get(name, values[:0]), values)
    return counts


def _place_shards(parts: Sequence[_Part], split: str, output: Path) -> tuple[list[ShardRecord], int]:
    """Put the shards of a split into the output under consecutive names; their records, and how many were linked."""
    records: list[ShardRecord] = []
    num_linked = 0
    for part in parts:
        record = part.manifest.splits.get(split)
        for shard in record.shards if record is not None else ():
            name = shard_name(split, len(records))
            for source, target in _files(part.directory.path / shard.name, output / name):
                num_linked += _link_or_copy(source, target)
            records.append(replace(shard, name=name))
    sync_directory(output)
    return records, num_linked


def _files(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """A shard and the indices beside it, with their new names."""
    indices = {form.index_path(source): form.index_path(target) for form in FORMATS.values()}
    return [*(pair for pair in indices.items() if pair[0].is_file()), (source, target)]


def _link_or_copy(source: Path, target: Path) -> bool:
    """True if the two now share their space."""
    with suppress(OSError):
        os.link(source, target)
        return True
    with explain_write_errors(target):
        shutil.copyfile(source, temporary_path(target))
        sync_file(temporary_path(target))
        replace_durably(target)
    return False


def _join(records: Sequence[SplitRecord], shards: Sequence[ShardRecord]) -> SplitRecord:
    """The record of all parts of a split: numbers are added, maxima are compared."""
    largest = ("max_token_id", "longest_document_tokens")
    joined: dict[str, Any] = {}
    for item in fields(SplitRecord):
        values = [getattr(record, item.name) for record in records]
        joined[item.name] = max(values) if item.name in largest else _added(values)
    return SplitRecord(**{**joined, "shards": tuple(shards)})


def _join_readings(records: Sequence[ReadingRecord | None]) -> ReadingRecord | None:
    """What all parts have read; None if one does not say."""
    known = [record for record in records if record is not None]
    if len(known) < len(records):
        return None
    return ReadingRecord(**_added([asdict(record) for record in known]))


def _notes(parts: Sequence[_Part], manifest: DataManifest) -> Iterator[str]:
    """What was asked for and is not there."""
    asked, found = manifest.settings.get("max_tokens"), manifest.splits.get("train")
    if isinstance(asked, int) and found is not None and found.num_tokens < asked:
        yield (
            f"the training split has {found.num_tokens:,} of the {asked:,} tokens that --max-tokens asked for: "
            "where a part holds less text than its share, the other parts do not make up for it"
        )


def _added(values: Sequence[Any]) -> Any:
    """Numbers added, mappings of numbers added by key; anything else as the first has it."""
    if all(isinstance(value, int | float) for value in values):
        return sum(values)
    if all(isinstance(value, dict) for value in values):
        keys = dict.fromkeys(key for value in values for key in value)
        return {key: _added([value[key] for value in values if key in value]) for key in keys}
    return values[0]
