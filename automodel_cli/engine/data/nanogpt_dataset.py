"""`NanogptDataset`: fixed-length samples from token shards.

A map-style dataset: the order in which samples are read is arithmetic that lives outside it
(`order.py`), so it holds no position and knows nothing of ranks or workers. It refuses, before
training starts: no matching file, a header that does not match its file, shards that are all
too short for `seq_len`, alignment to a BOS token that is not known.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from automodel_cli.engine.data.find_shards import find_shards
from automodel_cli.engine.data.order import SampleOrder, ShardOrder
from automodel_cli.engine.data.sample_layout import AlignedLayout, DenseLayout, aligned_starts
from automodel_cli.engine.data.token_windows import TokenWindows
from automodel_cli.engine.shards.bos_index import load_bos_offsets
from automodel_cli.engine.shards.format import HEADER_BYTES, ShardInfo, open_tokens
from automodel_cli.engine.shards.manifest import DataManifest, manifest_for
from automodel_cli.errors import ConfigError, DataError

Int64Array = npt.NDArray[np.int64]

_PROBE_TOKENS = 2048


class NanogptDataset:
    """Samples of `seq_len` inputs and their next-token labels.

    A shard of n tokens gives (n - 1) // seq_len samples; no sample spans two shards.

    Args:
        file_pattern: A glob pattern, a path, or a list of them; relative to the working directory.
        seq_len: Inputs per sample.
        shuffle_files: With `shuffle=False`, read the shards in another order each epoch. With
            `shuffle=True` the order of samples already mixes all shards, and this changes nothing.
        align_to_bos: Begin every sample at a BOS token. Tokens between the end of one sample
            and the next BOS are then left out (`num_unused_tokens`).
        bos_token: The id that begins a document; by default the one in the data's manifest.
        shuffle: Read the samples of each epoch in a new random order, a function of the run's seed.

    Attributes:
        fingerprint: Identifies the samples, whatever the directory is called.
        manifest: What preparation wrote down, or `None` when the shards have no manifest that fits.
        max_token_id: The largest id according to the manifest, or `None` when it is unknown.
        num_tokens: Tokens in all shards.

    Raises:
        ConfigError: `seq_len` is below 1.
        DataError: The shards are missing, damaged or too short, or the BOS token is unknown.
    """

    def __init__(
        self,
        file_pattern: str | Path | Sequence[str | Path],
        seq_len: int,
        *,
        shuffle_files: bool = False,
        align_to_bos: bool = False,
        bos_token: int | None = None,
        shuffle: bool = True,
    ) -> None:
        if seq_len < 1:
            raise ConfigError(f"seq_len is {seq_len}, but a sample has at least 1 input")
        self.seq_len = seq_len
        self.shuffle = shuffle
        self.shuffle_files = shuffle_files
        self.shards = find_shards(file_pattern)
        self.manifest: DataManifest | None = manifest_for(self.shards)
        self.bos_token = self._known_bos(bos_token)
        self.align_to_bos = align_to_bos
        self._layout = self._aligned_layout() if align_to_bos else self._dense_layout()
        self._windows = TokenWindows(self.shards, seq_len + 1)
        self._num_samples = sum(self._layout.samples_per_shard)
        self.num_tokens = sum(info.num_tokens for info in self.shards)
        self.max_token_id = self._known_max_token_id()
        self.fingerprint = self._fingerprint()

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
        if sample_ids.size and not (sample_ids.min() >= 0 and sample_ids.max() < self._num_samples):
            raise IndexError(f"sample ids go from 0 to {self._num_samples - 1}")
        windows = self._windows.read(*self._layout.locate(sample_ids))
        return {"input_ids": windows[:, :-1].astype(np.int64), "labels": windows[:, 1:].astype(np.int64)}

    def locate(self, sample_id: int) -> tuple[str, int]:
        """The shard of a sample and the token offset of its first input."""
        shards, offsets = self._layout.locate(np.array([sample_id], dtype=np.int64))
        return str(self.shards[int(shards[0])].path), int(offsets[0])

    def sample_order(self, seed: int) -> SampleOrder | ShardOrder:
        """The order in which a run with this seed reads the samples."""
        if self.shuffle_files and not self.shuffle:
            return ShardOrder(self._layout.samples_per_shard, seed, self.fingerprint)
        return SampleOrder(self._num_samples, seed, self.fingerprint, self.shuffle)

    @property
    def num_unused_tokens(self) -> int:
        """Tokens that are never an input: the ends of shards, and the gaps before an aligned start."""
        return self.num_tokens - self._num_samples * self.seq_len

    def _known_bos(self, bos_token: int | None) -> int | None:
        if bos_token is None and self.manifest is not None:
            return self.manifest.tokenizer.bos_id
        return bos_token

    def _known_max_token_id(self) -> int | None:
        if self.manifest is None:
            return None
        records = [self.manifest.shard(info.path.name) for info in self.shards]
        return max(record.max_token_id for record in records if record is not None)

    def _dense_layout(self) -> DenseLayout:
        layout = DenseLayout([info.num_tokens for info in self.shards], self.seq_len)
        if not any(layout.samples_per_shard):
            longest = max(self.shards, key=lambda info: info.num_tokens)
            raise DataError(
                f"seq_len {self.seq_len:,} needs shards of at least {self.seq_len + 1:,} tokens, "
                f"but the longest of {len(self.shards)} has {longest.num_tokens:,}",
                where=str(longest.path),
                help=_shorter(longest.num_tokens - 1),
            )
        return layout

    def _aligned_layout(self) -> AlignedLayout:
        bos_id = self.bos_token
        if bos_id is None:
            raise DataError(
                "align_to_bos needs to know the BOS token, but no manifest beside the shards names one",
                where=str(self.shards[0].path),
                help="set bos_token, for example bos_token: 50256 for the GPT-2 vocabulary",
            )
        starts = [self._aligned_starts_of(info, bos_id) for info in self.shards]
        if not any(len(offsets) for offsets in starts):
            raise DataError(
                f"no BOS token {bos_id} is followed by seq_len = {self.seq_len:,} more tokens in any of "
                f"{len(self.shards)} shards",
                where=str(self.shards[0].path),
                help="choose a smaller seq_len, another bos_token, or align_to_bos: false",
            )
        return AlignedLayout(starts)

    def _aligned_starts_of(self, info: ShardInfo, bos_id: int) -> Int64Array:
        bos_offsets = load_bos_offsets(info, open_tokens(info), bos_id)
        return aligned_starts(bos_offsets, info.num_tokens, self.seq_len)

    def _fingerprint(self) -> str:
        """A hash of the layout and of probes of each shard: cheap, and equal after a move or copy.

        It does not use the manifest, so that losing `manifest.json` does not change the order.
        """
        digest = hashlib.sha256(f"seq_len {self.seq_len}|bos {self.bos_token if self.align_to_bos else None}".encode())
        for info in self.shards:
            digest.update(f"|{info.num_tokens} x {info.dtype.itemsize}".encode())
            digest.update(_probe(info))
        return digest.hexdigest()


def _probe(info: ShardInfo) -> bytes:
    """Tokens from the beginning, the middle and the end of a shard."""
    starts = (0, max(0, info.num_tokens // 2), max(0, info.num_tokens - _PROBE_TOKENS))
    with info.path.open("rb") as file:
        parts = []
        for start in starts:
            file.seek(HEADER_BYTES + start * info.dtype.itemsize)
            parts.append(file.read(_PROBE_TOKENS * info.dtype.itemsize))
    return b"".join(parts)


def _shorter(longest_seq_len: int) -> str:
    if longest_seq_len < 1:
        return "prepare more text"
    return f"seq_len {longest_seq_len:,} or less would work, or more text in larger shards"
