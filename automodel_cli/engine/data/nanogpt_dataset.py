"""`NanogptDataset`: fixed-length samples from token shards.

It refuses, before training starts: no matching file, a header that does not match its file, shards that
are all too short for `seq_len`, and alignment to, or marks at, a BOS token that is not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from automodel_cli.engine.data.samples import AlignedLayout, aligned_starts, mark_documents
from automodel_cli.engine.data.window_dataset import WindowDataset, common_manifest, dense_layout, find_parts
from automodel_cli.engine.shards.formats import format_of
from automodel_cli.engine.shards.shard_format import document_begins
from automodel_cli.engine.shards.tokens import Int64Array, ShardInfo
from automodel_cli.errors import ConfigError, DataError


class NanogptDataset(WindowDataset):
    """Samples of `seq_len` inputs and their next-token labels.

    A shard of n tokens gives (n - 1) // seq_len samples; no sample spans two shards.

    Args:
        file_pattern: A glob pattern, a path, or a list of them; relative to the working directory. A list in which
            weights and patterns take turns (`["30", "a/*.bin", "70", "b/*.bin"]`), or of mappings with `pattern`
            and `weight`, is a blend: in any stretch of the run each part has its share of the samples.
        seq_len: Inputs per sample.
        shuffle_files: With `shuffle=False`, read the shards in another order each epoch. With
            `shuffle=True` the order of samples already mixes all shards, and this changes nothing.
        align_to_bos: Begin every sample at a BOS token. Tokens between the end of one sample
            and the next BOS are then left out (`num_unused_tokens`).
        bos_token: The id that begins a document; by default the one in the data's manifest.
        shuffle: Read the samples of each epoch in a new random order, a function of the run's seed.
        document_mask: Give `position_ids`, which start again at each document, and `document_ids` too, so that
            attention stays within documents.

    Attributes:
        bos_token: The id that begins a document, as far as it is known; other attributes as `WindowDataset`.

    Raises:
        ConfigError: `seq_len` is below 1, or a blend is not well-formed.
        DataError: The shards are missing, damaged or too short, or the BOS token is unknown.
    """

    def __init__(
        self,
        file_pattern: str | Path | Sequence[str | Path | int | float | Mapping[str, Any]],
        seq_len: int,
        *,
        shuffle_files: bool = False,
        align_to_bos: bool = False,
        bos_token: int | None = None,
        shuffle: bool = True,
        document_mask: bool = False,
    ) -> None:
        if seq_len < 1:
            raise ConfigError(f"seq_len is {seq_len}, but a sample has at least 1 input")
        parts = find_parts(file_pattern)
        shards = [info for part in parts for info in part.shards]
        manifest = common_manifest(parts)
        self.bos_token = manifest.tokenizer.bos_id if bos_token is None and manifest is not None else bos_token
        self.align_to_bos = align_to_bos
        self.document_mask = document_mask
        self._refuse_unknown_bos(shards)
        # One token may both begin and end documents; a bos_token that is given here only begins them.
        self._ends_too = manifest is not None and manifest.tokenizer.bos_is_eos
        layout = self._aligned_layout(shards, seq_len) if align_to_bos else dense_layout(shards, seq_len)
        identity = f"seq_len {seq_len}|bos {self.bos_token if align_to_bos else None}"
        super().__init__(parts, layout, seq_len, identity, shuffle=shuffle, shuffle_files=shuffle_files)

    def gather(self, sample_ids: Int64Array) -> dict[str, Int64Array]:
        """The samples `sample_ids` (B,) as int64 arrays (B, T): `input_ids`, `labels`, and what `document_mask` adds.

        Raises:
            IndexError: An id is not in 0 to len - 1.
        """
        batch = super().gather(sample_ids)
        if self.document_mask and self.bos_token is not None:
            batch["position_ids"], batch["document_ids"] = mark_documents(batch["input_ids"], self.bos_token)
        return batch

    def document_begins(self, number: int) -> Int64Array | None:
        """The token offsets of the BOS tokens in shard `number`; `None` where BOS is not known."""
        return None if self.bos_token is None else self._begins_in(self.shards[number], self.bos_token)

    def _refuse_unknown_bos(self, shards: Sequence[ShardInfo]) -> None:
        for name in ("align_to_bos", "document_mask"):
            if getattr(self, name) and self.bos_token is None:
                raise DataError(
                    f"{name} needs to know the BOS token, but no manifest beside the shards names one",
                    where=str(shards[0].path),
                    help="set bos_token, for example bos_token: 50256 for the GPT-2 vocabulary",
                )

    def _aligned_layout(self, shards: Sequence[ShardInfo], seq_len: int) -> AlignedLayout:
        bos_id = -1 if self.bos_token is None else self.bos_token
        starts = [aligned_starts(self._begins_in(info, bos_id), info.num_tokens, seq_len) for info in shards]
        if not any(len(offsets) for offsets in starts):
            raise DataError(
                f"no BOS token {bos_id} is followed by seq_len = {seq_len:,} more tokens in any of "
                f"{len(shards)} shards",
                where=str(shards[0].path),
                help="choose a smaller seq_len, another bos_token, or align_to_bos: false",
            )
        return AlignedLayout(starts)

    def _begins_in(self, info: ShardInfo, bos_id: int) -> Int64Array:
        return document_begins(format_of(info).starts(info, bos_id), ends_too=self._ends_too)
