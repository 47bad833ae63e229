"""Writes tokens as Megatron's indexed dataset: `train_000000.bin` and `train_000000.idx`, one file after another.

The same interface and guarantees as `ShardWriter`: files of a fixed number of tokens, checked ids, complete
files or none. A document begins at its BOS token; one that a file's end cuts is listed in both files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from automodel_cli.engine.shards.durable import write_durably
from automodel_cli.engine.shards.megatron import begins_to_list, build_index, index_path
from automodel_cli.engine.shards.writer import ShardWriter
from automodel_cli.errors import ConfigError


class MegatronWriter(ShardWriter):
    """As `ShardWriter`, in Megatron's format.

    Args:
        directory: Exists already.
        split: Begins the file names.
        dtype: uint16, or uint32: written as int32, the type that Megatron has for large vocabularies.
        shard_tokens: Every file but the last holds exactly this many tokens.
        bos_id: The id at which documents begin.

    Raises:
        ConfigError: `shard_tokens` is out of range, or there is no BOS token to tell documents apart.
    """

    def __init__(
        self, directory: Path, split: str, dtype: np.dtype[Any], shard_tokens: int, bos_id: int | None
    ) -> None:
        if bos_id is None:
            raise ConfigError(
                "the format megatron lists where documents begin, so it needs a BOS token, but there is none",
                help="give one, or choose another --format",
            )
        super().__init__(directory, split, np.dtype("<i4") if dtype.itemsize == 4 else dtype, shard_tokens, bos_id)

    def _header(self, num_tokens: int) -> bytes:
        return b""

    def _write_index(self, path: Path, bos_offsets: npt.NDArray[np.int64], num_tokens: int) -> None:
        lengths = np.diff(begins_to_list(bos_offsets, ends_too=self.bos_is_eos), append=num_tokens)
        write_durably(index_path(path), build_index(lengths, self._dtype))
