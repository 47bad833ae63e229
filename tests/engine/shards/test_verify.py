"""Verification finds every change of a byte, and names what it is."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from automodel_cli.engine.shards.megatron import MegatronFormat, build_index
from automodel_cli.engine.shards.shard_format import bos_index_path
from automodel_cli.engine.shards.verify import verify_directory
from automodel_cli.errors import DataError, UsageError


def kinds(directory):
    return {problem.kind for problem in verify_directory(directory).problems}


def test_what_was_written_is_sound(prepared):
    """No problem, and every byte was read: the progress ends at the size of all shards."""
    seen = []

    found = verify_directory(prepared, seen.append)

    assert found.problems == ()
    assert found.has_manifest
    assert found.num_bytes == sum(file.stat().st_size for file in prepared.glob("*.bin"))
    # Headers are read, but not reported on their own.
    assert seen[-1].done_bytes == found.num_bytes - 1024 * found.num_shards


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_of_any_file_is_found(prepared, data):
    """Shards and indices: whatever bit of whatever byte is flipped, it is a problem."""
    files = sorted([*prepared.glob("*.bin"), *prepared.glob("*.bos.idx")])
    file = data.draw(st.sampled_from([file for file in files if file.stat().st_size]))
    place = data.draw(st.integers(0, file.stat().st_size - 1))
    bit = data.draw(st.integers(0, 7))
    original = file.read_bytes()
    changed = bytearray(original)
    changed[place] ^= 1 << bit
    try:
        file.write_bytes(changed)

        found = verify_directory(prepared)
    finally:
        file.write_bytes(original)

    assert found.problems
    assert {problem.where for problem in found.problems} & {file.name, "train", "val"}


def test_a_shard_that_was_cut_short_is_named_with_both_sizes(prepared):
    """Its size is wrong, and its header no longer fits."""
    shard = min(prepared.glob("train_*.bin"))
    shard.write_bytes(shard.read_bytes()[:-2])

    found = verify_directory(prepared)

    assert {(problem.kind, problem.where) for problem in found.problems} == {
        ("size", shard.name),
        ("header", shard.name),
    }
    assert "1,122" in found.problems[0].message
    assert "1,124" in found.problems[0].message


def test_a_missing_shard_and_one_too_many_are_named(prepared):
    """The one would be missed in training, the other read."""
    first, second = sorted(prepared.glob("train_*.bin"))[:2]
    shutil.copyfile(first, prepared / "train_999999.bin")
    second.unlink()

    found = verify_directory(prepared)

    assert [(problem.kind, problem.where) for problem in found.problems] == [
        ("missing", second.name),
        ("unlisted", "train_999999.bin"),
    ]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda raw: raw["splits"]["train"].update(num_documents=31), "count"),
        (lambda raw: raw["splits"]["train"].update(num_tokens=1), "count"),
        (lambda raw: raw["splits"]["train"].update(longest_document_tokens=500), "count"),
        (lambda raw: raw["splits"]["train"].update(max_token_id=5), "count"),
        (lambda raw: raw["splits"]["train"].update(unigram_entropy_nats=1.0), "count"),
        (lambda raw: raw["splits"]["train"]["shards"][0].update(max_token_id=5), "token_range"),
        (lambda raw: raw["splits"]["train"]["shards"][0].update(sha256="0"), "sha256"),
        (lambda raw: raw["splits"]["train"]["shards"][0].update(num_bytes=3), "size"),
        (lambda raw: raw["tokenizer"].update(vocab_size=256), "token_range"),
    ],
)
def test_a_manifest_that_says_otherwise_is_found(prepared, edit_manifest, change, kind):
    """Each number that verification can compute is compared."""
    edit_manifest(prepared, change)

    assert kinds(prepared) == {kind}


@pytest.mark.parametrize(
    "index", [b"", b"abc", np.array([0], "<i4").tobytes(), (1024 + 2 * np.arange(4)).astype("<i4").tobytes(), None]
)
def test_an_index_that_does_not_list_every_bos_is_found(prepared, index):
    """Missing, odd, incomplete, or in bytes."""
    path = bos_index_path(min(prepared.glob("train_*.bin")))
    path.unlink()
    if index is not None:
        path.write_bytes(index)

    found = verify_directory(prepared)

    assert [(problem.kind, problem.where) for problem in found.problems] == [("bos_index", path.name)]


def test_shards_without_manifest_are_verified_as_far_as_they_tell(prepared):
    """Headers and indices; an index that points at different tokens is a problem."""
    (prepared / "manifest.json").unlink()
    assert verify_directory(prepared).problems == ()
    assert not verify_directory(prepared).has_manifest

    bos_index_path(prepared / "val_000000.bin").write_bytes(np.array([0, 1], "<i4").tobytes())
    (prepared / "train_000001.bin").write_bytes(b"short")

    assert {(problem.kind, problem.where) for problem in verify_directory(prepared).problems} == {
        ("bos_index", "val_000000.bos.idx"),
        ("header", "train_000001.bin"),
    }


def test_megatron_files_are_verified_too(prepare_documents, random_documents, tmp_path):
    """Sound as written; an index whose documents are not those of the tokens is found."""
    directory = prepare_documents(tmp_path / "m", {"train": random_documents(12)}, form=MegatronFormat())
    assert verify_directory(directory).problems == ()

    index = directory / "train_000000.idx"
    index.write_bytes(build_index(np.array([20, 30]), np.dtype("<u2")))

    assert kinds(directory) == {"bos_index"}


def test_what_is_no_directory_of_shards_is_refused(tmp_path):
    """A wrong argument is a matter of usage, an empty directory one of data."""
    with pytest.raises(UsageError, match="not a directory"):
        verify_directory(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no shards"):
        verify_directory(tmp_path)
