"""From `file_pattern` to files, and what a user reads when there are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from automodel_cli.engine.data.find_shards import find_shards
from automodel_cli.errors import DataError


def names(shards):
    return [info.path.name for info in shards]


def test_a_pattern_is_sorted_and_a_list_keeps_its_order(small_shards):
    """Reading order is the user's, where the user gives one."""
    s0, s1, s2 = sorted(str(path) for path in Path(small_shards).parent.glob("*.bin"))

    assert names(find_shards(small_shards)) == ["s0_000000.bin", "s1_000000.bin", "s2_000000.bin"]
    assert names(find_shards([s2, s0])) == ["s2_000000.bin", "s0_000000.bin"]
    assert names(find_shards(Path(s1))) == ["s1_000000.bin"]


def test_patterns_work_relative_to_the_working_directory_and_across_directories(write_shards, tmp_path, monkeypatch):
    """`data/**/*.bin` finds shards at any depth."""
    write_shards(tmp_path / "data/a/b", [9])
    monkeypatch.chdir(tmp_path)

    assert names(find_shards("data/**/*.bin")) == ["s0_000000.bin"]
    assert names(find_shards("data/a/b/s?_*.bin")) == ["s0_000000.bin"]


def test_a_name_with_characters_of_patterns_is_found(write_shards, tmp_path):
    """`run[1]` is also a legal name of a directory."""
    write_shards(tmp_path / "run[1]", [9])

    assert names(find_shards(tmp_path / "run[1]" / "s0_000000.bin")) == ["s0_000000.bin"]


def test_a_pattern_without_match_shows_the_nearest_directory(tmp_path):
    """The user sees what is there instead, and a command that makes data."""
    (tmp_path / "data").mkdir()
    for number in range(9):
        (tmp_path / "data" / f"part{number}.parquet").touch()

    with pytest.raises(DataError) as caught:
        find_shards(str(tmp_path / "data" / "train" / "*.bin"))

    message = str(caught.value)
    assert str(tmp_path / "data" / "train" / "*.bin") in message
    assert f"{tmp_path / 'data'}, which holds part0.parquet" in message
    assert "and 3 more" in message
    assert "amcli prep shakespeare" in message


def test_a_shard_matched_twice_is_refused(small_shards):
    """Two overlapping patterns would read its tokens twice in every epoch."""
    with pytest.raises(DataError, match="more than once"):
        find_shards([small_shards, small_shards.replace("s*", "s1*")])


def test_an_empty_list_is_refused():
    """There is nothing to train on."""
    with pytest.raises(DataError, match="empty list"):
        find_shards([])
