"""Fixed-length samples from shards of tokens: what the datasets of every format have in common.

A map-style dataset: the order in which samples are read is arithmetic that lives outside it
(`order.py`), so it holds no position and knows nothing of ranks or workers.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from automodel_cli.engine.config.file_pattern import PatternPart, matching_files, pattern_parts
from automodel_cli.engine.data.order import BlendOrder, BlendSchedule, SampleOrder, ShardOrder
from automodel_cli.engine.data.samples import AlignedLayout, DenseLayout, OpenShards, refuse_outside
from automodel_cli.engine.protocols import Order
from automodel_cli.engine.shards.formats import read_shard
from automodel_cli.engine.shards.manifest import DataManifest, manifest_for
from automodel_cli.engine.shards.tokens import Int64Array, ShardInfo, Tokens
from automodel_cli.errors import DataError

_PROBE_TOKENS = 2048


class WindowDataset:
    """Samples of `seq_len` inputs and their next-token labels; no sample spans two shards.

    Args:
        parts: The parts of a blend, or a single one.
        layout: Where the samples of all shards of all parts lie.
        seq_len: Inputs per sample.
        identity: What else decides the samples; goes into the fingerprint before the shards.
        shuffle: Read the samples of each epoch in a new random order, a function of the run's seed.
        shuffle_files: Without `shuffle`, read the shards in another order each epoch.

    Attributes:
        fingerprint: Identifies the samples, whatever the directory is called.
        manifest: What preparation wrote down, or `None` when the shards have no manifest that fits. That of a
            blend has no splits.
        max_token_id: The largest id according to the manifests, or `None` when it is unknown.
        num_tokens: Tokens in all shards.
        shards: The shards of all parts.

    Raises:
        DataError: Two parts were made with different tokenizers, or a part of a blend has no samples.
    """

    def __init__(
        self,
        parts: Sequence[DataPart],
        layout: DenseLayout | AlignedLayout,
        seq_len: int,
        identity: str,
        *,
        shuffle: bool,
        shuffle_files: bool = False,
    ) -> None:
        self.seq_len = seq_len
        self.shuffle = shuffle
        self.shuffle_files = shuffle_files
        self.parts = list(parts)
        self.shards = [info for part in parts for info in part.shards]
        self.manifest: DataManifest | None = common_manifest(self.parts)
        self._layout = layout
        self._open = OpenShards(self.shards)
        self._num_samples = sum(layout.samples_per_shard)
        self.num_tokens = sum(info.num_tokens for info in self.shards)
        largest = [part.max_token_id for part in self.parts]
        self.max_token_id = None if None in largest else max(found for found in largest if found is not None)
        self._identity = identity
        self.fingerprint = self._fingerprint()
        self._check_parts()

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, index: int) -> dict[str, Int64Array]:
        """Sample `index`: `input_ids` (T,) and `labels` (T,), int64; labels are the next tokens."""
        batch = self.gather(np.array([operator.index(index)], dtype=np.int64))
        return {name: rows[0] for name, rows in batch.items()}

    def gather(self, sample_ids: Int64Array) -> dict[str, Int64Array]:
        """The samples `sample_ids` (B,) as `input_ids` (B, T) and `labels` (B, T), int64.

        Raises:
            IndexError: An id is not in 0 to len - 1.
        """
        sample_ids = np.asarray(sample_ids, dtype=np.int64)
        refuse_outside(sample_ids, self._num_samples)
        size = self.seq_len + 1
        windows = self._open.read(*self._layout.locate(sample_ids), size).reshape(-1, size)
        return {"input_ids": windows[:, :-1].astype(np.int64), "labels": windows[:, 1:].astype(np.int64)}

    def document_begins(self, number: int) -> Int64Array | None:
        """The token offsets at which documents begin in shard `number`; `None` where nothing says."""
        raise NotImplementedError

    def locate(self, sample_id: int) -> tuple[str, int]:
        """The shard of a sample and the token offset of its first input."""
        shards, offsets = self._layout.locate(np.array([sample_id], dtype=np.int64))
        return str(self.shards[int(shards[0])].path), int(offsets[0])

    def sample_order(self, seed: int) -> Order:
        """The order in which a run with this seed reads the samples."""
        counts = self._samples_of_parts()
        weights = [part.weight for part in self.parts if part.weight is not None]
        if not weights:
            return self._order(counts[0], seed, self.fingerprint)
        orders = [
            self._order(samples, seed, fingerprint(self._identity, part.shards))
            for part, samples in zip(self.parts, counts, strict=True)
        ]
        return BlendOrder(orders, BlendSchedule(weights))

    @property
    def num_unused_tokens(self) -> int:
        """Tokens that are never an input: the ends of shards, and the gaps before an aligned start."""
        return self.num_tokens - self._num_samples * self.seq_len

    def _order(self, samples_per_shard: Sequence[int], seed: int, data: str) -> SampleOrder | ShardOrder:
        if self.shuffle_files and not self.shuffle:
            return ShardOrder(samples_per_shard, seed, data)
        return SampleOrder(sum(samples_per_shard), seed, data, self.shuffle)

    def _samples_of_parts(self) -> list[list[int]]:
        """Samples of each shard of each part."""
        counts = iter(self._layout.samples_per_shard)
        return [[next(counts) for _ in part.shards] for part in self.parts]

    def _check_parts(self) -> None:
        for part, counts in zip(self.parts, self._samples_of_parts(), strict=True):
            if part.weight is not None and not sum(counts):
                raise DataError(
                    f"this part of the blend has no sample of {self.seq_len:,} inputs, but a weight",
                    where=str(part.shards[0].path),
                    help="leave it out, or choose a smaller seq_len",
                )

    def _fingerprint(self) -> str:
        weights = "".join(f"|{part.weight} of {len(part.shards)}" for part in self.parts if part.weight is not None)
        return fingerprint(f"{self._identity}{weights}", self.shards)


def fingerprint(identity: str, shards: Sequence[ShardInfo]) -> str:
    """A hash of probes of each shard: cheap, and equal after a move or copy.

    It does not use the manifest, so that losing `manifest.json` does not change the order.
    """
    digest = hashlib.sha256(identity.encode())
    for info in shards:
        digest.update(f"|{info.num_tokens} x {info.dtype.itemsize}".encode())
        digest.update(_probe(info))
    return digest.hexdigest()


def _probe(info: ShardInfo) -> bytes:
    """Tokens from the beginning, the middle and the end of a shard."""
    starts = (0, max(0, info.num_tokens // 2), max(0, info.num_tokens - _PROBE_TOKENS))
    tokens = Tokens(info)
    return b"".join(tokens.raw(start, min(_PROBE_TOKENS, info.num_tokens - start)) for start in starts)


def dense_layout(shards: Sequence[ShardInfo], seq_len: int) -> DenseLayout:
    """Samples at every `seq_len` tokens of the shards.

    Raises:
        DataError: No shard has a single one.
    """
    layout = DenseLayout([info.num_tokens for info in shards], seq_len)
    if any(layout.samples_per_shard):
        return layout
    longest = max(shards, key=lambda info: info.num_tokens)
    works = f"seq_len {longest.num_tokens - 1:,} or less would work, or more text in larger shards"
    raise DataError(
        f"seq_len {seq_len:,} needs shards of at least {seq_len + 1:,} tokens, "
        f"but the longest of {len(shards)} has {longest.num_tokens:,}",
        where=str(longest.path),
        help=works if longest.num_tokens > 1 else "prepare more text",
    )


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
