"""Parts become one directory, or one clear error; nothing is lost, doubled or changed on the way."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from automodel_cli.engine.shards.directory import SplitDocuments
from automodel_cli.engine.shards.manifest import ReadingRecord, load_manifest
from automodel_cli.engine.shards.megatron import MegatronFormat
from automodel_cli.engine.shards.merge import _join_readings, merge
from automodel_cli.engine.shards.verify import verify_directory
from automodel_cli.errors import DataError, UsageError


@pytest.fixture
def parts(tmp_path, prepare_documents, random_documents):
    """Three parts with train and val, and the documents of each."""
    made = []
    for number in range(3):
        documents = {"train": random_documents(12 + number, seed=number), "val": random_documents(2, seed=10 + number)}
        directory = prepare_documents(tmp_path / f"part{number}", documents, partition=f"{number}/3")
        made.append((directory, documents))
    return made


def read_documents(directory, split):
    """All documents of a split, without BOS."""
    manifest = load_manifest(directory)
    found = SplitDocuments([directory / shard.name for shard in manifest.splits[split].shards], 256)
    return [found.document(number).tokens[1:].tolist() for number in range(found.num_documents)]


def test_a_merge_has_the_documents_of_all_parts_in_order(parts, tmp_path):
    """Whatever order the parts are named in; and what it wrote passes verification, entropy included."""
    directories = [directory for directory, _ in parts]

    merged = merge(directories[::-1], tmp_path / "whole")

    for split in ("train", "val"):
        expected = [document for _, documents in parts for document in documents[split]]
        assert read_documents(tmp_path / "whole", split) == expected
    assert verify_directory(tmp_path / "whole").problems == ()
    assert merged.num_parts == 3
    assert merged.manifest.splits["train"].num_documents == 12 + 13 + 14
    assert "partition" not in merged.manifest.settings


def test_parts_stay_as_they_are_and_share_their_space(parts, tmp_path):
    """Linked files: one inode under two names."""
    directory = parts[1][0]

    merge([directory for directory, _ in parts], tmp_path / "whole")

    assert verify_directory(directory).problems == ()
    whole = {file.stat().st_ino for file in (tmp_path / "whole").glob("*.bin")}
    assert {file.stat().st_ino for file in directory.glob("*.bin")} < whole


def test_shards_are_copied_where_links_are_impossible(parts, tmp_path, monkeypatch):
    """Another file system, or one without links."""

    def refuse(source, target):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)

    merged = merge([directory for directory, _ in parts], tmp_path / "whole")

    assert merged.num_linked == 0
    assert verify_directory(tmp_path / "whole").problems == ()


def test_megatron_parts_keep_their_indices(tmp_path, prepare_documents, random_documents):
    """The `.idx` goes with its `.bin`."""
    directories = [
        prepare_documents(
            tmp_path / f"{n}", {"train": random_documents(9, seed=n)}, partition=f"{n}/2", form=MegatronFormat()
        )
        for n in range(2)
    ]

    merge(directories, tmp_path / "whole")

    assert verify_directory(tmp_path / "whole").problems == ()
    assert len(list((tmp_path / "whole").glob("*.idx"))) == len(list((tmp_path / "whole").glob("*.bin")))


def test_missing_and_repeated_parts_are_named(parts, tmp_path, prepare_documents, random_documents):
    """All of them, and nothing is written."""
    first, second, third = (directory for directory, _ in parts)
    twin = prepare_documents(tmp_path / "twin", {"train": random_documents(3)}, partition="1/3")
    of_four = prepare_documents(tmp_path / "four", {"train": random_documents(3)}, partition="3/4")

    with pytest.raises(DataError, match=r"2 of 3 parts are missing: 0/3, 2/3"):
        merge([second], tmp_path / "whole")
    with pytest.raises(DataError, match=r"part 1/3, and so is"):
        merge([first, second, twin, third], tmp_path / "whole")
    with pytest.raises(DataError, match=r"part 3/4, but .* is one of 3"):
        merge([first, second, of_four], tmp_path / "whole")
    assert not (tmp_path / "whole").exists()


def test_a_part_made_with_other_settings_is_refused_naming_the_setting(parts, edit_manifest, tmp_path):
    """Both values stand in the message."""
    first, second, third = (directory for directory, _ in parts)
    edit_manifest(second, lambda raw: raw["settings"].update(shard_tokens=7))

    with pytest.raises(DataError, match=r"shard_tokens is 7 and 50 there"):
        merge([first, second, third], tmp_path / "whole")


def test_a_damaged_part_is_refused_before_anything_is_written(parts, tmp_path):
    """One flipped bit in one shard of one part."""
    directories = [directory for directory, _ in parts]
    shard = max(directories[2].glob("train_*.bin"))
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)

    with pytest.raises(DataError, match=rf"the part is damaged: {shard.name}: .*"):
        merge(directories, tmp_path / "whole")

    assert not (tmp_path / "whole").exists()


def test_what_is_no_part_or_not_finished_is_refused(prepared, parts, tmp_path):
    """Also an output that is in use."""
    with pytest.raises(DataError, match="names no partition"):
        merge([prepared], tmp_path / "whole")
    with pytest.raises(UsageError, match="not an empty directory"):
        merge([directory for directory, _ in parts], prepared)
    (prepared / "manifest.json").unlink()
    with pytest.raises(DataError, match="did not finish"):
        merge([prepared], tmp_path / "whole")


def test_a_budget_that_the_parts_did_not_fill_is_said_with_both_numbers(tmp_path, prepare_documents, random_documents):
    """A part that is short of its share is not made up for by the others; a budget that was met is not spoken of."""
    documents = [random_documents(9, seed=number) for number in range(2)]
    num_tokens = sum(len(document) + 1 for part in documents for document in part)

    def merged(name, max_tokens):
        parts = [
            prepare_documents(
                tmp_path / f"{name}{number}", {"train": part}, partition=f"{number}/2", max_tokens=max_tokens
            )
            for number, part in enumerate(documents)
        ]
        return merge(parts, tmp_path / name)

    (note,) = merged("short", 1_000_000).notes

    assert f"{num_tokens:,} of the 1,000,000 tokens that --max-tokens asked for" in note
    assert merged("exact", num_tokens).notes == merged("whole", None).notes == ()


def test_the_first_documents_left_out_are_those_of_the_first_part():
    """Counts are added, places are not."""
    readings = [ReadingRecord(1, 2, {"null": 3}, {"null": {"where": f"{part}:1", "found": ""}}) for part in "ab"]

    assert _join_readings(readings) == ReadingRecord(2, 4, {"null": 6}, {"null": {"where": "a:1", "found": ""}})


def test_counts_of_any_kind_are_added():
    """Numbers, and numbers by reason, such as skipped documents."""
    from automodel_cli.engine.shards.merge import _added

    assert _added([{"empty": 1}, {"empty": 2, "null": np.int64(3).item()}]) == {"empty": 3, "null": 3}
