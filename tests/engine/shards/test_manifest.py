"""The manifest comes back as it was written and is used only where it fits."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from automodel_cli.engine.shards.format import read_shard_header
from automodel_cli.engine.shards.manifest import (
    DataManifest,
    SourceRecord,
    SplitRecord,
    TokenizerRecord,
    load_manifest,
    manifest_for,
    write_manifest,
)
from automodel_cli.engine.shards.writer import ShardWriter
from automodel_cli.errors import DataError


@pytest.fixture
def prepared(tmp_path):
    """Two shards with their manifest."""
    with ShardWriter(tmp_path, "train", np.dtype("<u2"), 6, 0) as writer:
        writer.write(np.arange(10))
        records = tuple(writer.close())
    manifest = DataManifest(
        source=SourceRecord("é", sha256="aa"),
        tokenizer=TokenizerRecord("bytes", 257, 256, "bb"),
        settings={"max_tokens": None},
        splits={"train": SplitRecord(1, 10, 40, 9, 10, 2.25, records)},
        amcli_version="0",
    )
    write_manifest(tmp_path, manifest)
    return tmp_path, manifest


def shards_of(directory):
    return [read_shard_header(path) for path in sorted(directory.glob("*.bin"))]


def test_a_manifest_survives_writing_and_reading(prepared):
    """Every field, nested records included."""
    directory, manifest = prepared

    assert load_manifest(directory) == manifest
    assert load_manifest(directory / "elsewhere") is None


def test_a_manifest_is_found_for_all_or_some_of_its_shards(prepared):
    """A run may read only a part of the prepared shards."""
    directory, manifest = prepared

    assert manifest_for(shards_of(directory)) == manifest
    assert manifest_for(shards_of(directory)[1:]) == manifest


def test_a_manifest_of_other_shards_is_not_used(prepared, tmp_path_factory):
    """A shard that the manifest does not list, or lists with another length, makes it say nothing."""
    directory, _ = prepared
    first, second = shards_of(directory)
    elsewhere = replace(second, path=tmp_path_factory.mktemp("b") / second.path.name)

    assert manifest_for([first, replace(second, path=directory / "other.bin")]) is None
    assert manifest_for([first, replace(second, num_tokens=3)]) is None
    assert manifest_for([first, elsewhere]) is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"format": ', "not valid JSON"),
        ('{"name": "my-app"}', "no manifest of token shards"),
        ("[1]", "no manifest of token shards"),
        ('{"format": "amcli-token-shards", "format_version": 99}', "version 99"),
        ('{"format": "amcli-token-shards", "format_version": 1}', "damaged"),
    ],
)
def test_a_broken_manifest_is_refused(tmp_path, text, complaint):
    """A manifest that cannot be understood is never taken for an absent one."""
    (tmp_path / "manifest.json").write_text(text)

    with pytest.raises(DataError, match=complaint):
        load_manifest(tmp_path)


def test_a_manifest_with_an_unknown_field_is_refused(prepared):
    """A field of a later version may change what the others mean."""
    directory, manifest = prepared
    raw = manifest.to_dict()
    raw["splits"]["train"]["surprise"] = 1
    (directory / "manifest.json").write_text(json.dumps(raw))

    with pytest.raises(DataError, match="surprise"):
        load_manifest(directory)
