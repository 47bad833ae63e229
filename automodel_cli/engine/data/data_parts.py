"""From the files of a configuration to the parts of a dataset: shards whose headers were checked, with weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from automodel_cli.engine.config.file_pattern import PatternPart, matching_files, pattern_parts
from automodel_cli.engine.shards.formats import read_shard
from automodel_cli.engine.shards.manifest import DataManifest, manifest_for
from automodel_cli.engine.shards.tokens import ShardInfo
from automodel_cli.errors import DataError


@dataclass(frozen=True)
class DataPart:
    """Shards that are read as one, with the weight of a blend or without.

    Attributes:
        shards: In reading order.
        weight: Its share; `None` in a dataset that is no blend, which has one part.
        manifest: What describes all of the shards, if anything does.
    """

    shards: tuple[ShardInfo, ...]
    weight: Fraction | None
    manifest: DataManifest | None

    @property
    def max_token_id(self) -> int | None:
        """The largest id according to the manifest."""
        if self.manifest is None:
            return None
        records = [self.manifest.shard(info.path.name) for info in self.shards]
        return max(record.max_token_id for record in records if record is not None)


def find_parts(file_pattern: Any) -> list[DataPart]:
    """The parts of a blend, or one part with all shards that match.

    Args:
        file_pattern: A path or glob pattern (`**` crosses directories), several of them, or a blend.

    Raises:
        ConfigError: A blend is not well-formed.
        DataError: A pattern matches no file, a file is matched twice, or a header is wrong.
    """
    patterns = pattern_parts(file_pattern)
    if not patterns:
        raise DataError("file_pattern is an empty list", help="give it at least one path, such as data/train_*.bin")
    files = [matching_files(Path(part.pattern)) for part in patterns]
    refuse_repeated([file for found in files for file in found], "file_pattern")
    return [
        DataPart(shards, weight, manifest_for(shards))
        for weight, found in by_part(patterns, files)
        for shards in [tuple(read_shard(file, "NanogptDataset") for file in found)]
    ]


def by_part(
    patterns: Sequence[PatternPart], files: Sequence[Sequence[Path]]
) -> list[tuple[Fraction | None, list[Path]]]:
    """Weight and files of each part: one for each weight, or one for everything where there are no weights."""
    if patterns[0].weight is not None:
        return [(part.weight, list(found)) for part, found in zip(patterns, files, strict=True)]
    return [(None, [file for found in files for file in found])]


def refuse_repeated(files: Sequence[Path], key: str) -> None:
    """Refuse a file that two patterns match.

    Raises:
        DataError: There is one.
    """
    if len(set(files)) < len(files):
        repeated = min(str(file) for file in files if files.count(file) > 1)
        raise DataError(
            f"{key} names {repeated} more than once: its tokens would be read twice in every epoch",
            help="let every file match one pattern only",
        )


def common_manifest(parts: Sequence[DataPart]) -> DataManifest | None:
    """The manifest of the only part; of a blend whose parts share a tokenizer, one without splits that names it.

    Raises:
        DataError: Two parts were made with different tokenizers.
    """
    known = [part.manifest for part in parts if part.manifest is not None]
    for part in parts:
        manifest = part.manifest
        if manifest is not None and manifest.tokenizer.sha256 != known[0].tokenizer.sha256:
            raise DataError(
                f"this part of the blend was made with the tokenizer {manifest.tokenizer.name!r}, but another one "
                f"with {known[0].tokenizer.name!r}: the same id means different text",
                where=str(part.shards[0].path.parent),
                help="prepare all parts with one tokenizer",
            )
    if len(parts) == 1 or len(known) < len(parts):
        return parts[0].manifest if len(parts) == 1 else None
    return replace(known[0], splits={})
