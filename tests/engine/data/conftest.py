"""Shards whose contents a test can compute: token t of the data set is t modulo 251."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from automodel_cli.engine.shards.writer import ShardWriter


def _write_shards(directory: Path, lengths, *, dtype="<u2", bos_id=None, modulus=251) -> str:
    """Write shards of these lengths and return the pattern that matches them."""
    directory.mkdir(parents=True, exist_ok=True)
    begin = 0
    for number, length in enumerate(lengths):
        with ShardWriter(directory, f"s{number}", np.dtype(dtype), max(length, 1), bos_id) as writer:
            writer.write(np.arange(begin, begin + length) % modulus)
            writer.close()
        begin += length
    return str(directory / "s*.bin")


@pytest.fixture(scope="session")
def write_shards() -> Callable[..., str]:
    """Writes shards of given lengths; returns the pattern that matches them."""
    return _write_shards


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory) -> str:
    """Three shards that give 6, 0 and 13 samples of 4 inputs."""
    return _write_shards(tmp_path_factory.mktemp("shards"), [27, 4, 55])
