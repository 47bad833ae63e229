"""`MegatronPretraining`: fixed-length samples from Megatron's indexed datasets (`NAME.bin` beside `NAME.idx`).

The files are read as they are, without an index mapping on disk: the documents of a split are read one
behind the other, as in token shards, and the order of the samples is the same arithmetic
(`order.py`). It is NOT the sample order of Megatron, which shuffles documents before it cuts samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from automodel_cli.engine.config.file_pattern import MEGATRON_SPLITS, PatternPart, megatron_files, pattern_parts
from automodel_cli.engine.data.window_dataset import DataPart, WindowDataset, by_part, dense_layout, refuse_repeated
from automodel_cli.engine.shards.manifest import manifest_for
from automodel_cli.engine.shards.megatron import MegatronIndex, read_megatron
from automodel_cli.engine.shards.tokens import Int64Array, ShardInfo
from automodel_cli.errors import ConfigError, DataError

Split = Literal["train", "validation", "test"]
_SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class MegatronPretraining(WindowDataset):
    """Samples of `seq_length` inputs and their next-token labels from one split of indexed datasets.

    A file of n tokens in the split gives (n - 1) // seq_length samples; no sample spans two files.

    Args:
        paths: A prefix (the path without `.bin`) or glob pattern of prefixes, a list of them, a blend
            `["30", prefix1, "70", prefix2]`, or a mapping that gives `train`, `validation` and `test` their own.
        seq_length: Inputs per sample.
        split: Shares of the documents of each file that are for training, validation and test, in this order in
            the file; unused where `paths` is a mapping.
        splits_to_build: The split to read.
        shuffle: Read the samples of each epoch in a new random order, a function of the run's seed.
        num_val_samples: Samples of the validation split at most; null takes all.
        tokenizer: Has no effect: tokens are read as they are. Accepted, as files written for NeMo AutoModel have it.
        index_mapping_dir: Has no effect: no mapping is needed. Accepted for the same reason.

    Raises:
        ConfigError: A number, the split or a blend is not well-formed.
        DataError: The files are missing or damaged, or the split is empty or too short.
    """

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path | int | float] | Mapping[str, Any],
        seq_length: int = 2048,
        *,
        split: str | Sequence[float] = "900,50,50",
        splits_to_build: Split = "train",
        shuffle: bool = True,
        num_val_samples: int | None = None,
        tokenizer: Any = None,
        index_mapping_dir: str | None = None,
    ) -> None:
        if seq_length < 1:
            raise ConfigError(f"seq_length is {seq_length}, but a sample has at least 1 input")
        if splits_to_build not in _SPLITS:
            raise ConfigError(f"splits_to_build is {splits_to_build!r}, but it must be one of {', '.join(_SPLITS)}")
        has_own_files = isinstance(paths, Mapping)
        shares = (1.0, 0.0, 0.0) if has_own_files else parse_split(split)
        place = 0 if has_own_files else _SPLITS.index(splits_to_build)
        parts = _find_parts(_patterns_of(paths, splits_to_build), shares, place)
        shards = [info for part in parts for info in part.shards]
        if not sum(info.num_tokens for info in shards):
            raise DataError(
                f"the {splits_to_build} split holds no documents: split is {split!r}",
                where=str(shards[0].path),
                help="give that split a larger share, or another one to splits_to_build",
            )
        layout = dense_layout(shards, seq_length)
        super().__init__(parts, layout, seq_length, f"megatron|seq_len {seq_length}", shuffle=shuffle)
        if splits_to_build == "validation" and num_val_samples is not None:
            self._num_samples = max(1, min(self._num_samples, num_val_samples))

    def document_begins(self, number: int) -> Int64Array | None:
        """The token offsets at which documents begin in the split's part of file `number`."""
        info = self.shards[number]
        begins = read_megatron(info.path).document_starts - info.begin_bytes // info.dtype.itemsize
        return begins[(begins >= 0) & (begins < info.num_tokens)]


def parse_split(split: str | Sequence[float]) -> tuple[float, float, float]:
    """The shares of training, validation and test, with sum 1.

    Raises:
        ConfigError: They are not three numbers of at least 0, one of them above.

    >>> parse_split("900,50,50"), parse_split([1, 1, 0])
    ((0.9, 0.05, 0.05), (0.5, 0.5, 0.0))
    """
    try:
        weights = [float(item) for item in (split.split(",") if isinstance(split, str) else split)]
    except (TypeError, ValueError):
        weights = []
    if len(weights) != len(_SPLITS) or not all(0 <= weight < float("inf") for weight in weights) or not sum(weights):
        raise ConfigError(f"split is {split!r}, but it must be three shares such as 900,50,50", help="98,2,0 works too")
    train, validation, test = (weight / sum(weights) for weight in weights)
    return train, validation, test


def _patterns_of(paths: Any, split: Split) -> list[PatternPart]:
    if not isinstance(paths, Mapping):
        return pattern_parts(paths)
    if set(paths) - MEGATRON_SPLITS or split not in paths:
        raise ConfigError(
            f"paths has the keys {', '.join(map(str, paths))}, but each must be one of {', '.join(_SPLITS)}, "
            f"and {split} must be there"
        )
    return pattern_parts(paths[split])


def _find_parts(patterns: list[PatternPart], shares: tuple[float, ...], place: int) -> list[DataPart]:
    if not patterns:
        raise DataError("paths is an empty list", help="give it at least one prefix, such as data/web_text_document")
    files = [megatron_files(Path(part.pattern)) for part in patterns]
    refuse_repeated([file for found in files for file in found], "paths")
    parts = []
    for weight, found in by_part(patterns, files):
        indices = [read_megatron(file) for file in found]
        # The manifest describes whole files, of which the split may be a part.
        manifest = manifest_for([index.info for index in indices])
        parts.append(DataPart(tuple(_part_of(index, shares, place) for index in indices), weight, manifest))
    return parts


def _part_of(index: MegatronIndex, shares: tuple[float, ...], place: int) -> ShardInfo:
    """The tokens of those documents of a file that belong to a split."""
    bounds = np.rint(np.cumsum((0.0, *shares)) * index.num_documents).astype(np.int64)
    begin, end = (int(index.document_starts[bounds[edge]]) for edge in (place, place + 1))
    info = index.info
    return replace(info, num_tokens=end - begin, begin_bytes=info.begin_bytes + begin * info.dtype.itemsize)
