"""A directory of shards, with a manifest or without, as lists of shards by split.

Where a manifest lies there, it says which shards belong to which split and in which order. Without
one the names do: `fineweb_val_000001.bin` belongs to the split `fineweb_val`. Nothing is opened here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from automodel_cli.engine.shards.bos_index import bos_index_path, read_index
from automodel_cli.engine.shards.format import ShardInfo, open_tokens
from automodel_cli.engine.shards.manifest import DataManifest, load_manifest
from automodel_cli.errors import DataError, UsageError

_NUMBER = re.compile(r"[_-]?\d+$")


@dataclass(frozen=True)
class ShardDirectory:
    """What lies in a directory of shards.

    Attributes:
        path: The directory.
        manifest: What preparation wrote down, if there is any.
        splits: The shards of each split in reading order; those of the manifest may be missing on disk.
        unlisted: Shards that the manifest does not know; empty without a manifest.
    """

    path: Path
    manifest: DataManifest | None
    splits: dict[str, tuple[Path, ...]]
    unlisted: tuple[Path, ...]

    def split(self, name: str | None) -> str:
        """The name of a split: the one given, or the first.

        Raises:
            UsageError: There is no such split.
        """
        if name is None:
            return next(iter(self.splits))
        if name not in self.splits:
            there = ", ".join(self.splits)
            raise UsageError(f"{self.path} has no split {name!r}", help=f"its splits are {there}")
        return name


def open_directory(path: Path) -> ShardDirectory:
    """Find the shards of a directory.

    Raises:
        UsageError: It is no directory.
        DataError: It holds no shards, or its manifest cannot be read.
    """
    if not path.is_dir():
        raise UsageError(f"{path} is not a directory", help="give the directory that `amcli prep` wrote")
    manifest = load_manifest(path)
    files = tuple(sorted(file for file in path.glob("*.bin") if not file.name.startswith(".")))
    if manifest is None:
        if not files:
            raise DataError("the directory holds no shards (*.bin) and no manifest.json", where=str(path))
        return ShardDirectory(path, None, _by_name(files), ())
    splits = {name: tuple(path / shard.name for shard in split.shards) for name, split in manifest.splits.items()}
    listed = {file for shards in splits.values() for file in shards}
    return ShardDirectory(path, manifest, splits, tuple(file for file in files if file not in listed))


def _by_name(files: Sequence[Path]) -> dict[str, tuple[Path, ...]]:
    splits: dict[str, tuple[Path, ...]] = {}
    for file in files:
        name = split_of(file)
        splits[name] = (*splits.get(name, ()), file)
    return splits


def split_of(file: Path) -> str:
    """The split that the name of a shard speaks of: the name without its number.

    >>> split_of(Path("fineweb_val_000001.bin")), split_of(Path("dataset.bin")), split_of(Path("7.bin"))
    ('fineweb_val', 'dataset', '7')
    """
    return _NUMBER.sub("", file.stem) or file.stem


def bos_id_by_index(info: ShardInfo) -> int | None:
    """The BOS token according to the index beside a shard: the one token that all its entries point at."""
    offsets = read_index(bos_index_path(info.path), info.num_tokens)
    if offsets is None or not len(offsets) or offsets.min() < 0 or offsets.max() >= info.num_tokens:
        return None
    tokens = open_tokens(info)[offsets]
    return int(tokens[0]) if bool((tokens == tokens[0]).all()) else None
