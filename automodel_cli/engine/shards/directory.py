"""A directory of shards, with a manifest or without: the shards of each split, and the documents in them.

Where a manifest lies there, it says which shards belong to which split and in which order. Without
one the names do: `fineweb_val_000001.bin` belongs to the split `fineweb_val`.

A document begins at a BOS token, or where the index of the format says. Shards roll over at a number
of tokens, so a document may begin in one shard and end in the next.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from automodel_cli.engine.shards.formats import format_of, read_shard
from automodel_cli.engine.shards.manifest import DataManifest, load_manifest
from automodel_cli.engine.shards.shard_format import document_begins
from automodel_cli.engine.shards.tokens import Int64Array, TokenArray, Tokens
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


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        number: Its place in the split, from 0.
        shard: Where it begins.
        offset: Token offset there.
        tokens: Its tokens, BOS included.
    """

    number: int
    shard: Path
    offset: int
    tokens: TokenArray


class SplitDocuments:
    """The documents of one split.

    Args:
        shards: In reading order.
        bos_id: The id that begins a document; `None` takes what the indices point at.
        ends_too: The same id also ends each document.

    Attributes:
        shards: What the headers say.
        starts: Token offset of each document from the beginning of the split, and the number of tokens at
            the end; only that number where nothing says where documents begin.

    Raises:
        DataError: A shard cannot be read or does not fit its header.
    """

    def __init__(self, shards: Sequence[Path], bos_id: int | None, *, ends_too: bool = False) -> None:
        self.shards = [read_shard(path) for path in shards]
        self._begins = np.cumsum([0, *(info.num_tokens for info in self.shards)], dtype=np.int64)
        found = [
            format_of(info).starts(info, bos_id) + begin for info, begin in zip(self.shards, self._begins, strict=False)
        ]
        begins = np.concatenate([*found, self._begins[:0]])
        if ends_too:
            begins = self._without_ends(begins, bos_id)
        self.starts: Int64Array = np.unique(np.append(begins, self._begins[-1]))

    @property
    def num_documents(self) -> int:
        """Documents that begin in the split."""
        return len(self.starts) - 1

    @property
    def lengths(self) -> Int64Array:
        """Tokens of each document, shape (D,)."""
        return np.diff(self.starts)

    def document(self, number: int) -> Document:
        """The document at a place.

        Raises:
            UsageError: There is none.
        """
        if not 0 <= number < self.num_documents:
            raise UsageError(f"there is no document {number:,}: the split has {self.num_documents:,}, counted from 0")
        return self._read(number, int(self.starts[number]), int(self.starts[number + 1]))

    def document_at(self, offset: int) -> Document:
        """The document that holds the token at `offset` of the split.

        Raises:
            UsageError: The split is shorter, or no document begins before that token.
        """
        num_tokens = int(self._begins[-1])
        if not 0 <= offset < num_tokens:
            raise UsageError(f"there is no token {offset:,}: the split has {num_tokens:,}, counted from 0")
        number = int(np.searchsorted(self.starts, offset, side="right")) - 1
        if number < 0:
            raise UsageError(
                f"nothing says where the document of token {offset:,} begins",
                help="give --bos-token, for example 50256 for the GPT-2 vocabulary",
            )
        return self.document(number)

    def _read(self, number: int, begin: int, end: int) -> Document:
        first = int(np.searchsorted(self._begins, begin, side="right")) - 1
        parts = []
        for shard in range(first, len(self.shards)):
            start = int(self._begins[shard])
            if start >= end:
                break
            parts.append(Tokens(self.shards[shard])[max(begin - start, 0) : end - start])
        return Document(number, self.shards[first].path, begin - int(self._begins[first]), np.concatenate(parts))

    def _without_ends(self, begins: Int64Array, bos_id: int | None) -> Int64Array:
        """The offsets at which documents begin, of those at which the one token that does both stands."""
        if not any(format_of(info).lists_documents for info in self.shards):
            return document_begins(begins, ends_too=True)
        # The indices list beginnings, but for the first place of a file, which may be an end.
        ends = [
            begin
            for begin, before in zip(self._begins[1:-1], self.shards, strict=False)
            if before.num_tokens and int(Tokens(before)[-1]) != bos_id
        ]
        return np.setdiff1d(begins, ends)


def require_documents(documents: SplitDocuments, where: Path) -> None:
    """Refuse a split of which nothing says where its documents begin.

    Raises:
        DataError: There is no index, and no BOS token is known or occurs.
    """
    if not documents.num_documents:
        raise DataError(
            "nothing says where documents begin: there is no manifest, no index, and no BOS token was given",
            where=str(where),
            help="give --bos-token, for example 50256 for the GPT-2 vocabulary",
        )
