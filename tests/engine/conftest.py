"""Directories of shards whose documents a test chooses, made as preparation makes them; and a group of one rank."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from automodel_cli.engine.shards.formats import FORMATS
from automodel_cli.engine.shards.manifest import (
    DataManifest,
    SourceRecord,
    SplitRecord,
    TokenizerRecord,
    write_manifest,
)
from automodel_cli.engine.shards.scan import unigram_entropy_nats
from automodel_cli.engine.shards.tokens import token_dtype
from automodel_cli.engine.shards.writer import ShardWriter

BOS = 256


def _prepare(
    directory: Path, splits, *, shard_tokens=50, partition=None, vocab_size=257, form=FORMATS["bin"], **more
) -> Path:
    """Write documents (lists of ids without BOS) of each split as shards, and a manifest with `more` settings."""
    directory.mkdir(parents=True)
    records = {}
    for name, documents in splits.items():
        tokens = np.concatenate([np.array([BOS, *document]) for document in documents])
        with ShardWriter(directory, name, token_dtype(vocab_size), shard_tokens, BOS, form) as shards:
            shards.write(tokens)
            written = tuple(shards.close())
        records[name] = SplitRecord(
            num_documents=len(documents),
            num_tokens=len(tokens),
            text_bytes=len(tokens) - len(documents),
            max_token_id=int(tokens.max()),
            longest_document_tokens=max(map(len, documents)) + 1,
            unigram_entropy_nats=unigram_entropy_nats(np.bincount(tokens)),
            shards=written,
        )
    settings = {"shard_tokens": shard_tokens} | ({"partition": partition} if partition else {}) | more
    manifest = DataManifest(
        source=SourceRecord("documents of a test"),
        tokenizer=TokenizerRecord("bytes", vocab_size, BOS, "hash"),
        settings=settings,
        splits=records,
        amcli_version="0",
    )
    write_manifest(directory, manifest)
    return directory


def _documents(count: int, seed: int = 0, longest: int = 40) -> list[list[int]]:
    """Documents of random lengths and bytes."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, rng.integers(1, longest + 1)).tolist() for _ in range(count)]


@pytest.fixture(scope="session")
def prepare_documents() -> Callable[..., Path]:
    """Writes a directory of shards with a manifest from documents."""
    return _prepare


@pytest.fixture(scope="session")
def random_documents() -> Callable[..., list[list[int]]]:
    """Makes documents: random ids below 256."""
    return _documents


@pytest.fixture
def prepared(tmp_path) -> Path:
    """Two splits: 30 documents in several shards of 50 tokens, and 5."""
    return _prepare(tmp_path / "data", {"train": _documents(30), "val": _documents(5, seed=1)})


@pytest.fixture
def one_rank():
    """A group of this process alone."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()
