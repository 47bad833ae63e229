"""From the `file_pattern` of a configuration to shards whose headers were checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from automodel_cli.engine.shards.format import ShardInfo, read_shard_header
from automodel_cli.errors import DataError

_LISTED_FILES = 6


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
    paths = [path for pattern in patterns for path in _matches(Path(pattern).expanduser())]
    repeated = sorted({str(path) for path in paths if paths.count(path) > 1}) if len(set(paths)) < len(paths) else []
    if repeated:
        raise DataError(
            f"file_pattern names {repeated[0]} more than once: its tokens would be read twice in every epoch",
            help="let every file match one pattern only",
        )
    return [read_shard_header(path) for path in paths]


def _matches(pattern: Path) -> list[Path]:
    # A plain path comes first: its name may hold characters that a pattern gives a meaning.
    if pattern.is_file():
        return [pattern]
    root = Path(pattern.anchor)
    found = sorted(path for path in root.glob(str(pattern.relative_to(root))) if path.is_file())
    if found:
        return found
    directory = next(parent for parent in pattern.absolute().parents if parent.is_dir())
    names = sorted(entry.name for entry in directory.iterdir() if not entry.name.startswith("."))
    shown = ", ".join(names[:_LISTED_FILES]) or "nothing"
    more = f" and {len(names) - _LISTED_FILES} more" if len(names) > _LISTED_FILES else ""
    raise DataError(
        f"no file matches; the nearest directory that exists is {directory}, which holds {shown}{more}",
        where=str(pattern),
        help="`amcli prep shakespeare` makes data/shakespeare/train_*.bin and val_*.bin",
    )
