"""Writes shards with the legacy header 20240520, which modded-nanogpt's loader reads; two bytes per token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from automodel_cli.engine.shards.format import build_header
from automodel_cli.engine.shards.writer import ShardWriter
from automodel_cli.errors import ConfigError


class LegacyWriter(ShardWriter):
    """As `ShardWriter`, with the legacy header.

    Args:
        directory: Exists already.
        split: Begins the file names.
        dtype: uint16.
        shard_tokens: Every shard but the last holds exactly this many tokens.
        bos_id: As for `ShardWriter`.

    Raises:
        ConfigError: `shard_tokens` is out of range, or the vocabulary needs more than 2 bytes per token.
    """

    def __init__(
        self, directory: Path, split: str, dtype: np.dtype[Any], shard_tokens: int, bos_id: int | None
    ) -> None:
        if dtype.itemsize != 2:
            raise ConfigError(
                "the format legacy has 2 bytes per token, so a vocabulary has at most 65,536 entries, but this one "
                "has more",
                help="the default --format holds any vocabulary",
            )
        super().__init__(directory, split, dtype, shard_tokens, bos_id)

    def _header(self, num_tokens: int) -> bytes:
        return build_header(num_tokens, self._dtype, legacy=True)
