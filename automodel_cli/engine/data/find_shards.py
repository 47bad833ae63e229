"""From the `file_pattern` of a configuration to shards whose headers were checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from automodel_cli.engine.config.file_pattern import matching_files
from automodel_cli.engine.shards.format import ShardInfo, read_shard_header
from automodel_cli.errors import DataError


def find_shards(file_pattern: str | Path | Sequence[str | Path]) -> list[ShardInfo]:
    """Shards that match, in the order of the patterns and sorted by name within one pattern.

    Args:
        file_pattern: A path or glob pattern (`**` crosses directories), or several of them.

    Raises:
        DataError: A pattern matches no file, a file is matched twice, or a header is wrong.
    """
    patterns = [file_pattern] if isinstance(file_pattern, str | Path) else list(file_pattern)
    if not patterns:
        raise DataError("file_pattern is an empty list", help="give it at least one path, such as data/train_*.bin")
    paths = [path for pattern in patterns for path in matching_files(Path(pattern))]
    repeated = sorted({str(path) for path in paths if paths.count(path) > 1}) if len(set(paths)) < len(paths) else []
    if repeated:
        raise DataError(
            f"file_pattern names {repeated[0]} more than once: its tokens would be read twice in every epoch",
            help="let every file match one pattern only",
        )
    return [read_shard_header(path) for path in paths]
