"""Whether the shards of a directory are what their headers, indices and manifest say, byte by byte.

Every byte is read once. All problems are found, not only the first; nothing is changed. Without a
manifest the checks go as far as the headers and indices tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from automodel_cli.engine.shards.directory import ShardDirectory, open_directory
from automodel_cli.engine.shards.formats import format_of, read_shard
from automodel_cli.engine.shards.manifest import DataManifest, ShardRecord, SplitRecord
from automodel_cli.engine.shards.scan import ShardScan, add_counts, scan_shard, unigram_entropy_nats
from automodel_cli.engine.shards.shard_format import document_begins
from automodel_cli.engine.shards.tokens import Int64Array, ShardInfo
from automodel_cli.errors import DataError

# Sums of logarithms in another order of blocks differ in the last digits.
_ENTROPY_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it should be.

    Attributes:
        kind: `missing`, `unlisted`, `header`, `size`, `sha256`, `token_range`, `bos_index` or `count`.
        where: The file, or the split.
        message: What was found, and what should have been.
    """

    kind: str
    where: str
    message: str


@dataclass(frozen=True)
class VerifyProgress:
    """How far verification is, in bytes."""

    done_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Verification:
    """What verification found.

    Attributes:
        directory: What was verified.
        has_manifest: Whether sizes, hashes and counts could be compared with a manifest.
        num_shards: Shards that were read to the end.
        num_tokens: Tokens in them.
        num_bytes: Bytes of them.
        problems: Empty if all is as it should be.
        note: What else a user should know.
    """

    directory: str
    has_manifest: bool
    num_shards: int
    num_tokens: int
    num_bytes: int
    problems: tuple[Problem, ...]
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "is_sound": not self.problems}


OnProgress = Callable[[VerifyProgress], None]


@dataclass(frozen=True)
class _ScannedShard:
    info: ShardInfo
    scan: ShardScan


def verify_directory(path: Path, on_progress: OnProgress = lambda _: None) -> Verification:
    """Read every byte of a directory of shards and compare.

    Raises:
        UsageError: It is no directory.
        DataError: It holds no shards, or its manifest cannot be read.
    """
    return Verifier(open_directory(path), on_progress).run()


class Verifier:
    """Verifies one directory, and keeps how often each token occurs.

    Args:
        directory: What to verify.
        on_progress: Called after every block.

    Attributes:
        counts: After `run`, the occurrences of each id in each split.
    """

    def __init__(self, directory: ShardDirectory, on_progress: OnProgress = lambda _: None) -> None:
        self.counts: dict[str, Int64Array] = {}
        self._directory = directory
        self._problems: list[Problem] = []
        self._on_progress = on_progress
        files = [file for shards in directory.splits.values() for file in shards if file.is_file()]
        self._total_bytes = sum(file.stat().st_size for file in files)
        self._done_bytes = 0

    def run(self) -> Verification:
        """Read everything."""
        manifest = self._directory.manifest
        read: list[_ScannedShard] = []
        for name, files in self._directory.splits.items():
            shards = [shard for file in files if (shard := self._check_shard(file, manifest)) is not None]
            read += shards
            self.counts[name] = add_counts([shard.scan for shard in shards])
            # Counts of a split of which a shard is missing would only say again that it is.
            if manifest is not None and len(shards) == len(files):
                self._problems += _split_problems(name, manifest.splits[name], shards, manifest)
        for file in self._directory.unlisted:
            message = "the manifest does not list this shard, but a pattern such as *.bin would read it"
            self._problems.append(Problem("unlisted", file.name, message))
        return Verification(
            directory=str(self._directory.path),
            has_manifest=manifest is not None,
            num_shards=len(read),
            num_tokens=sum(shard.info.num_tokens for shard in read),
            num_bytes=sum(shard.info.begin_bytes + shard.info.num_tokens * shard.info.dtype.itemsize for shard in read),
            problems=tuple(self._problems),
            note=None if manifest is None else manifest.note,
        )

    def _check_shard(self, file: Path, manifest: DataManifest | None) -> _ScannedShard | None:
        """Read one shard; None if it cannot be read to its end."""
        record = None if manifest is None else manifest.shard(file.name)
        if not file.is_file():
            self._problems.append(Problem("missing", file.name, "the manifest lists this shard, but there is no file"))
            return None
        size = file.stat().st_size
        if record is not None and size != record.num_bytes:
            message = f"the file has {size:,} bytes, but the manifest says {record.num_bytes:,}"
            self._problems.append(Problem("size", file.name, message))
        try:
            info = read_shard(file)
            form = format_of(info)
            bos_id = form.known_bos(info) if manifest is None else manifest.tokenizer.bos_id
            scan = scan_shard(info, bos_id, self._advance)
        except DataError as error:
            self._problems.append(Problem("header", Path(error.where or file).name, error.message))
            self._advance(size)
            return None
        if record is not None and manifest is not None:
            self._problems += _record_problems(record, info, scan, manifest.tokenizer.vocab_size)
        for message in form.index_problems(info, scan.bos_offsets, bos_id, manifest):
            self._problems.append(Problem("bos_index", form.index_path(file).name, message))
        return _ScannedShard(info, scan)

    def _advance(self, num_bytes: int) -> None:
        self._done_bytes = min(self._done_bytes + num_bytes, self._total_bytes)
        self._on_progress(VerifyProgress(self._done_bytes, self._total_bytes))


def _record_problems(record: ShardRecord, info: ShardInfo, scan: ShardScan, vocab_size: int) -> Iterator[Problem]:
    """What differs between a shard and its record."""
    if info.num_tokens != record.num_tokens:
        message = f"the shard has {info.num_tokens:,} tokens, but the manifest says {record.num_tokens:,}"
        yield Problem("count", record.name, message)
    if scan.sha256 != record.sha256:
        yield Problem("sha256", record.name, f"SHA-256 is {scan.sha256}, but the manifest says {record.sha256}")
    if scan.max_token_id >= vocab_size:
        message = f"the token id {scan.max_token_id:,} is outside the tokenizer's 0 to {vocab_size - 1:,}"
        yield Problem("token_range", record.name, message)
    elif scan.max_token_id != record.max_token_id:
        message = f"the largest token id is {scan.max_token_id:,}, but the manifest says {record.max_token_id:,}"
        yield Problem("token_range", record.name, message)


def _split_problems(
    name: str, record: SplitRecord, shards: list[_ScannedShard], manifest: DataManifest
) -> Iterator[Problem]:
    """What differs between the shards of a split together and its record."""
    found: dict[str, int] = {"num_tokens": sum(shard.info.num_tokens for shard in shards)}
    found["max_token_id"] = max((shard.scan.max_token_id for shard in shards), default=0)
    lengths = _document_lengths(shards, ends_too=manifest.tokenizer.bos_is_eos)
    if lengths is not None:
        found["num_documents"] = len(lengths)
        found["longest_document_tokens"] = int(lengths.max(initial=0))
    for key, value in found.items():
        wanted = getattr(record, key)
        if value != wanted:
            yield Problem("count", name, f"{key} is {value:,}, but the manifest says {wanted:,}")
    entropy = unigram_entropy_nats(add_counts([shard.scan for shard in shards]))
    if not math.isclose(entropy, record.unigram_entropy_nats, rel_tol=_ENTROPY_TOLERANCE, abs_tol=_ENTROPY_TOLERANCE):
        message = f"unigram_entropy_nats is {entropy}, but the manifest says {record.unigram_entropy_nats}"
        yield Problem("count", name, message)


def _document_lengths(shards: list[_ScannedShard], *, ends_too: bool) -> Int64Array | None:
    """The lengths of the documents of a split; None where they do not all begin with BOS."""
    begin = 0
    starts = []
    for shard in shards:
        starts.append(shard.scan.bos_offsets + begin)
        begin += shard.info.num_tokens
    begins = document_begins(np.concatenate(starts), ends_too=ends_too)
    return np.diff(begins, append=begin) if len(begins) and begins[0] == 0 else None
