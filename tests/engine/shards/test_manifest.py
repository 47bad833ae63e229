"""The manifest comes back as it was written and is used only where it fits."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from automodel_cli.engine.shards.manifest import (
    DataManifest,
    SourceRecord,
    SplitRecord,
    TokenizerRecord,
    load_manifest,
    manifest_for,
    write_manifest,
)
from automodel_cli.engine.shards.tokens import read_shard_header
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
        ('{"format": ', "not JSON"),
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


def test_a_manifest_with_an_unknown_field_is_refused(prepared, edit_manifest):
    """A field of a later version may change what the others mean."""
    directory, _ = prepared
    edit_manifest(directory, lambda raw: raw["splits"]["train"].update(surprise=1))

    with pytest.raises(DataError, match="surprise"):
        load_manifest(directory)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda raw: raw["splits"].clear(), "lists no split"),
        (lambda raw: raw.update(splits=[]), "splits is a list, but it must be an object"),
        (lambda raw: raw["splits"]["train"].update(num_tokens=-1), "splits.train.num_tokens is -1, but it must be"),
        (lambda raw: raw["splits"]["train"].update(num_tokens=True), "num_tokens is true"),
        (lambda raw: raw["splits"]["train"].update(num_tokens=2**80), "num_tokens is 1208925819614629174706176, but"),
        (lambda raw: raw["splits"]["train"].update(unigram_entropy_nats="much"), "entropy_nats is 'much'"),
        (lambda raw: raw["splits"]["train"].update(shards={}), "shards is an object, but it must be a list"),
        (lambda raw: raw["splits"]["train"]["shards"][0].update(name="../x.bin"), "'../x.bin', which is not the name"),
        (lambda raw: raw["splits"]["train"]["shards"][0].update(name="a\0"), "is not the name of a file"),
        (lambda raw: raw["tokenizer"].update(vocab_size=None), "tokenizer.vocab_size is null"),
        (lambda raw: raw["tokenizer"].update(bos_id=-1), "tokenizer.bos_id is -1"),
        (lambda raw: raw.update(settings=3), "settings is 3"),
        (lambda raw: raw.update(format_version=True), "format version true"),
    ],
)
def test_a_manifest_with_a_field_of_another_kind_or_range_is_refused(prepared, edit_manifest, change, reason):
    """With the name of the field, what it holds and what it may hold."""
    directory, _ = prepared
    edit_manifest(directory, change)

    with pytest.raises(DataError, match=reason) as caught:
        load_manifest(directory)

    assert caught.value.where == str(directory / "manifest.json")


def test_every_flipped_bit_of_a_manifest_is_noticed(prepared):
    """Also one in its version, which is not believed before the text is known to be whole."""
    directory, _ = prepared
    path = directory / "manifest.json"
    sound = path.read_bytes()
    assert load_manifest(directory) is not None

    for place in range(0, len(sound) * 8, 7):
        flipped = bytearray(sound)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(DataError, match=r"damaged|no manifest of token shards") as caught:
            load_manifest(directory)
        assert "this amcli reads" not in caught.value.message


def test_a_manifest_of_an_earlier_version_is_read_with_a_note(prepared):
    """Versions 1 and 2 have no hash of themselves; version 3 without one is damaged."""
    directory, manifest = prepared
    path = directory / "manifest.json"

    path.write_text(json.dumps({**manifest.to_dict(), "format_version": 2}))
    earlier = load_manifest(directory)
    path.write_text(json.dumps(manifest.to_dict()))

    assert earlier is not None
    assert "no hash of itself" in earlier.note
    with pytest.raises(DataError, match="manifest_sha256 is missing"):
        load_manifest(directory)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_in_the_place_of_a_manifest_is_refused(make, tmp_path):
    """A directory, and a pipe that nobody writes to."""
    make(tmp_path / "manifest.json")

    with pytest.raises(DataError, match="not a regular file"):
        load_manifest(tmp_path)
