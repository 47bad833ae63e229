"""From `file_pattern` to files, and what a user reads when there are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from automodel_cli.engine.data.window_dataset import common_manifest, find_parts
from automodel_cli.errors import ConfigError, DataError


def names(parts):
    return [info.path.name for part in parts for info in part.shards]


def test_a_pattern_is_sorted_and_a_list_keeps_its_order(small_shards):
    """Reading order is the user's, where the user gives one."""
    s0, s1, s2 = sorted(str(path) for path in Path(small_shards).parent.glob("*.bin"))

    assert names(find_parts(small_shards)) == ["s0_000000.bin", "s1_000000.bin", "s2_000000.bin"]
    assert names(find_parts([s2, s0])) == ["s2_000000.bin", "s0_000000.bin"]
    assert names(find_parts(Path(s1))) == ["s1_000000.bin"]


def test_patterns_work_relative_to_the_working_directory_and_across_directories(write_shards, tmp_path):
    """`data/**/*.bin` finds shards at any depth."""
    write_shards(tmp_path / "data/a/b", [9])

    assert names(find_parts("data/**/*.bin")) == ["s0_000000.bin"]
    assert names(find_parts("data/a/b/s?_*.bin")) == ["s0_000000.bin"]


def test_a_name_with_characters_of_patterns_is_found(write_shards, tmp_path):
    """`run[1]` is also a legal name of a directory."""
    write_shards(tmp_path / "run[1]", [9])

    assert names(find_parts(tmp_path / "run[1]" / "s0_000000.bin")) == ["s0_000000.bin"]


def test_a_pattern_without_match_shows_the_nearest_directory(tmp_path):
    """The user sees what is there instead, and a command that makes data."""
    (tmp_path / "data").mkdir()
    for number in range(9):
        (tmp_path / "data" / f"part{number}.parquet").touch()

    with pytest.raises(DataError) as caught:
        find_parts(str(tmp_path / "data" / "train" / "*.bin"))

    message = str(caught.value)
    assert str(tmp_path / "data" / "train" / "*.bin") in message
    assert f"{tmp_path / 'data'}, which holds part0.parquet" in message
    assert "and 3 more" in message
    assert f"amcli prep SOURCE --output-dir {tmp_path / 'data' / 'train'}" in message


def test_a_shard_matched_twice_is_refused(small_shards):
    """Two overlapping patterns would read its tokens twice in every epoch."""
    with pytest.raises(DataError, match="more than once"):
        find_parts([small_shards, small_shards.replace("s*", "s1*")])


def test_an_empty_list_is_refused():
    """There is nothing to train on."""
    with pytest.raises(DataError, match="empty list"):
        find_parts([])


BLENDS = [
    lambda a, b: ["30", a, "70", b],
    lambda a, b: [30, a, 70.0, b],
    lambda a, b: [{"pattern": a, "weight": 30}, {"weight": "70", "pattern": b}],
]


@pytest.mark.parametrize("blend", BLENDS, ids=["text", "numbers", "mappings"])
def test_a_blend_has_a_part_for_each_weight(write_shards, tmp_path, blend):
    """Whichever way it is written."""
    a, b = write_shards(tmp_path / "a", [9, 8]), write_shards(tmp_path / "b", [7])

    parts = find_parts(blend(a, b))

    assert [(float(part.weight), [info.num_tokens for info in part.shards]) for part in parts] == [
        (30.0, [9, 8]),
        (70.0, [7]),
    ]


@pytest.mark.parametrize(
    ("blend", "message"),
    [
        (["30", "a", "b"], "take turns"),
        (["30", "a", "b", "70"], "take turns"),
        (["30", "a", "70"], "take turns"),
        (["0", "a", "1", "b"], "it must be a number above 0"),
        (["-1", "a", "1", "b"], "above 0"),
        ([{"pattern": "a"}], "keys pattern and weight"),
        ([{"pattern": "a", "weight": 1}, "b"], "keys pattern and weight"),
        ([{"pattern": "a", "weight": "much"}], "no number"),
        ([{"pattern": "a", "weight": True}], "no number"),
    ],
)
def test_a_blend_that_is_not_well_formed_is_refused_with_an_example(blend, message):
    """Before any file is looked for."""
    with pytest.raises(ConfigError, match=message) as caught:
        find_parts(blend)

    assert '["30", "a/*.bin", "70", "b/*.bin"]' in caught.value.help


def test_a_blend_of_two_tokenizers_is_refused(prepare_documents, edit_manifest, tmp_path):
    """The same id would mean different text."""
    a = prepare_documents(tmp_path / "a", {"train": [[1, 2, 3]]})
    b = prepare_documents(tmp_path / "b", {"train": [[1, 2, 3]]})
    edit_manifest(b, lambda raw: raw["tokenizer"].update(sha256="other"))

    with pytest.raises(DataError, match="made with the tokenizer"):
        common_manifest(find_parts([1, str(a / "*.bin"), 1, str(b / "*.bin")]))


def test_a_blend_knows_the_tokenizer_of_its_parts(prepare_documents, tmp_path):
    """If all of them are described; then the largest id is known too."""
    a = prepare_documents(tmp_path / "a", {"train": [[1, 2, 3]]})
    b = prepare_documents(tmp_path / "b", {"train": [[1, 2, 200]]})
    parts = find_parts([1, str(a / "*.bin"), 1, str(b / "*.bin")])
    (b / "manifest.json").unlink()
    without = find_parts([1, str(a / "*.bin"), 1, str(b / "*.bin")])

    assert common_manifest(parts).tokenizer.bos_id == 256
    assert common_manifest(parts).splits == {}
    assert common_manifest(without) is None
    assert [part.max_token_id for part in without] == [256, None]
