"""Data is looked for before anything starts: what is missing, where it was looked for, and whether it fits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.check_data import largest_token_id
from automodel_cli.engine.config.config import apply_overrides
from automodel_cli.engine.config.load import builtin_config, with_defaults
from automodel_cli.engine.data.nanogpt_dataset import NanogptDataset
from automodel_cli.engine.data.window_dataset import find_parts
from automodel_cli.engine.shards.megatron import build_index
from automodel_cli.errors import ConfigError, DataError, ExitCode


def check(*overrides):
    return checked(with_defaults(apply_overrides(builtin_config(), overrides)))


def on(data, *more):
    """Checks the built-in configuration on the shards of a directory."""
    return check(f"dataset.file_pattern={data}/train_*.bin", f"validation_dataset.file_pattern={data}/val_*.bin", *more)


@pytest.fixture(autouse=True)
def elsewhere():
    """No shards where the built-in configuration puts them."""


def test_data_that_is_there_and_fits_is_no_problem(tiny_data):
    """257 ids, and a model that has 257."""
    assert on(tiny_data).notes == ()


def test_a_pattern_without_files_shows_what_there_is(tiny_data):
    """The nearest directory and its files, at the place of the pattern; the run's own words."""
    pattern = f"{tiny_data}/trian_*.bin"

    with pytest.raises(DataError) as caught:
        on(tiny_data, f"dataset.file_pattern={pattern}")
    with pytest.raises(DataError) as at_run_time:
        find_parts(pattern)

    assert caught.value.where == "--set dataset.file_pattern"
    assert caught.value.message == f"dataset.file_pattern is {pattern}: {at_run_time.value.message}"
    assert "train_000000.bin" in caught.value.message
    assert caught.value.help == at_run_time.value.help


def test_the_help_is_about_the_directory_of_the_pattern(tiny_data, tmp_path):
    """How to fill it, or how to train on data that have no validation split."""
    shutil.copytree(tiny_data, tmp_path / "single")
    for shard in (tmp_path / "single").glob("val_*"):
        shard.unlink()

    with pytest.raises(DataError) as no_split:
        on(tmp_path / "single")
    with pytest.raises(DataError) as no_data:
        on(tiny_data, "dataset.file_pattern=data/web/train_*.bin")

    assert "single has no validation split" in no_split.value.help
    assert "--set validation_dataset=null --set step_scheduler.val_every_steps=null" in no_split.value.help
    assert "`amcli prep SOURCE --output-dir data/web`" in no_data.value.help


def test_each_pattern_of_a_list_is_looked_for(tiny_data):
    """The one without files is named by its index."""
    with pytest.raises(DataError) as caught:
        on(tiny_data, f"dataset.file_pattern=[{tiny_data}/train_*.bin, nowhere/*.bin]")

    assert "dataset.file_pattern.1 is nowhere/*.bin" in str(caught.value)


def test_only_data_problems_have_the_exit_code_of_data(tiny_data):
    """Two missing patterns are a matter of data; with a misspelt key beside them it is the configuration."""
    with pytest.raises(DataError) as data_only:
        on("nowhere")
    with pytest.raises(ConfigError) as both:
        on("nowhere", "step_scheduler.max_step=3")

    assert len(data_only.value.problems) == 2
    assert data_only.value.exit_code is ExitCode.DATA
    assert len(both.value.problems) == 3
    assert both.value.exit_code is ExitCode.USAGE


def test_the_embedded_corpus_need_not_be_there(tmp_path):
    """`pretrain` prepares it; once it says that it is prepared, its shards must be there."""
    assert check().notes == ()

    (tmp_path / "data/shakespeare").mkdir(parents=True)
    (tmp_path / "data/shakespeare/manifest.json").write_text("{}")
    with pytest.raises(DataError, match=r"which holds manifest\.json"):
        check()


def test_other_training_data_leaves_the_embedded_corpus_unprepared(tiny_data):
    """Then its validation split is missing, and it is said now, not at the first validation."""
    with pytest.raises(DataError, match=r"validation_dataset\.file_pattern is data/shakespeare/val"):
        check(f"dataset.file_pattern={tiny_data}/train_*.bin")


def test_a_vocabulary_that_is_too_small_is_found(tiny_data):
    """The numbers of both sides, at the model's."""
    largest = NanogptDataset(f"{tiny_data}/train_*.bin", seq_len=8).max_token_id

    with pytest.raises(DataError) as caught:
        on(tiny_data, "model.vocab_size=100")

    train = caught.value.problems[0]
    assert train.message == f"dataset holds the token id {largest}, but the model's vocabulary is 100 (ids 0 to 99)"
    assert train.where == "--set model.vocab_size"
    assert f"model.vocab_size to {largest + 1} or more" in train.help


def test_the_vocabulary_of_a_nested_config_counts_too(tiny_data):
    """As Hugging Face models have it."""
    nested = "{_target_: transformers.GPT2Config, vocab_size: 100}"

    with pytest.raises(DataError, match="vocabulary is 100"):
        on(tiny_data, f"model={{_target_: transformers.GPT2LMHeadModel.from_config, config: {nested}}}")


def test_the_largest_token_is_that_of_the_dataset_itself(tiny_data):
    """Two readers of one manifest agree, for each split."""
    for split in ("train", "val"):
        shards = sorted(tiny_data.glob(f"{split}_*.bin"))

        assert largest_token_id(shards) == NanogptDataset(f"{tiny_data}/{split}_*.bin", seq_len=8).max_token_id


@pytest.mark.parametrize(
    "manifest",
    [b"", b"\xff", b"[]", b"{}", b"[" * 100_000, b'{"format": "amcli-token-shards", "format_version": 1, "splits": 3}'],
)
def test_a_manifest_that_cannot_be_read_tells_nothing(tmp_path, manifest):
    """What is wrong with it is said where it is needed; here it is no second error."""
    (tmp_path / "manifest.json").write_bytes(manifest)
    shard = tmp_path / "train_000000.bin"
    shard.touch()

    assert largest_token_id([shard]) is None


def test_a_manifest_of_other_shards_tells_nothing(tiny_data, tmp_path):
    """A shard of another length than its record is not the one that was described."""
    record = json.loads((tiny_data / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(record))
    shard = tmp_path / "train_000000.bin"
    shard.write_bytes(b"short")

    assert largest_token_id([shard]) is None


def test_a_users_dataset_may_mean_anything_by_file_pattern():
    """A bucket, a table, a directory relative to elsewhere: not ours to judge."""
    unchecked = check(
        "dataset={_target_: builtins.dict, file_pattern: 's3://bucket/x'}",
        "validation_dataset=null",
        "step_scheduler.val_every_steps=null",
    ).unchecked

    assert [each.what for each in unchecked] == ["the keywords of `builtins.dict`", "the data of `dataset`"]


@pytest.mark.parametrize("pattern", ["/**/no_such_file.bin", "/*/*/*/no_such_file.bin"])
def test_a_pattern_through_all_directories_is_left_to_the_dataset(pattern):
    """A search that may take minutes has no place in a check."""
    check(f"dataset.file_pattern={pattern}", "validation_dataset=null", "step_scheduler.val_every_steps=null")


@pytest.mark.parametrize("value", ["3", "{a: b}", "''", "[x, 3]"])
def test_a_pattern_is_text(value):
    """Or a list of texts."""
    with pytest.raises((ConfigError, DataError)) as caught:
        check(f"dataset.file_pattern={value}", "validation_dataset=null", "step_scheduler.val_every_steps=null")

    assert "it must be a path, a pattern, or a list of them" in str(caught.value)


def test_looking_at_data_loads_no_numpy(tiny_data):
    """In a fresh interpreter, with shards and manifest in place."""
    code = """
import sys
from automodel_cli.engine.config.load import load_config
from automodel_cli.engine.config.check import checked
checked(load_config(None, sys.argv[1:]))
print({"numpy", "torch"} & set(sys.modules))
"""
    patterns = [
        f"dataset.file_pattern={tiny_data}/train_*.bin",
        f"validation_dataset.file_pattern={tiny_data}/val_*.bin",
    ]

    done = subprocess.run([sys.executable, "-c", code, *patterns], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"


def test_each_pattern_of_a_blend_is_looked_for(tiny_data):
    """Weights are not; the place of a pattern without files is its own."""
    with pytest.raises(DataError) as caught:
        on(tiny_data, f'dataset.file_pattern=["30", {tiny_data}/train_*.bin, "70", nowhere/*.bin]')
    assert "dataset.file_pattern.3 is nowhere/*.bin" in str(caught.value)

    blend = f"[{{pattern: {tiny_data}/train_*.bin, weight: 1}}, {{pattern: nowhere/*.bin, weight: 2}}]"
    with pytest.raises(DataError) as caught:
        on(tiny_data, f"dataset.file_pattern={blend}")
    assert "dataset.file_pattern.1.pattern is nowhere/*.bin" in str(caught.value)


def test_a_blend_that_is_not_well_formed_is_found(tiny_data):
    """With an example of one that is."""
    with pytest.raises(ConfigError, match="take turns") as caught:
        on(tiny_data, f"dataset.file_pattern=[30, {tiny_data}/train_*.bin, 70]")

    assert caught.value.where == "--set dataset.file_pattern"


def test_the_vocabulary_is_checked_against_each_part_of_a_blend(tiny_data, tmp_path):
    """One part that is described is enough, though another is not."""
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(tiny_data / "train_000000.bin", other)

    with pytest.raises(DataError, match="holds the token id 256"):
        on(tiny_data, f"dataset.file_pattern=[1, {other}/*.bin, 1, {tiny_data}/train_*.bin]", "model.vocab_size=100")


def test_megatron_datasets_are_looked_for_by_prefix(tmp_path):
    """Both files; a mapping by split has patterns of its own."""
    (tmp_path / "web.bin").write_bytes(bytes(12))
    (tmp_path / "web.idx").write_bytes(build_index(np.array([2, 4]), np.dtype("<u2")))
    (tmp_path / "code.bin").touch()
    target = "automodel_cli.engine.data.megatron_dataset.MegatronPretraining"
    rest = ("validation_dataset=null", "step_scheduler.val_every_steps=null")

    assert check(f"dataset={{_target_: {target}, paths: [30, web, 70, web.idx]}}", *rest)
    with pytest.raises(DataError, match=r"dataset\.paths\.1 is code: there is no \.idx"):
        check(f"dataset={{_target_: {target}, paths: [web, code]}}", *rest)
    with pytest.raises(DataError, match=r"dataset\.paths\.train is nothing: no file matches"):
        check(f"dataset={{_target_: {target}, paths: {{train: nothing}}}}", *rest)


def test_named_validation_sets_are_looked_for_too(tiny_data):
    """The one without files is named; the others are there."""
    dataset = "_target_: automodel_cli.engine.data.nanogpt_dataset.NanogptDataset, seq_len: 32"
    web, code = (f"{{{dataset}, file_pattern: {pattern}}}" for pattern in (f"{tiny_data}/val_*.bin", "nowhere/*.bin"))

    with pytest.raises(DataError) as caught:
        on(tiny_data, f"validation_dataset={{web: {web}, code: {code}}}")

    assert "validation_dataset.code.file_pattern is nowhere/*.bin" in str(caught.value)
    assert "web" not in str(caught.value)


SHORT = "the shard was cut short or is still being written"


@pytest.mark.parametrize(
    ("break_", "message", "help_"),
    [
        (lambda shard: os.truncate(shard, 5_000), "the file has 5,000 bytes, but its header promises", SHORT),
        (lambda shard: os.truncate(shard, 100), "the file has 100 bytes, but a shard begins with a header", "prep"),
        (lambda shard: shard.write_bytes(bytes(2_000)), "the file begins with 0, but a token shard", "amcli prep"),
        (lambda shard: shard.with_suffix(".idx").touch() or os.truncate(shard, 100), "", "read this one with Megatron"),
    ],
    ids=["cut", "cut in the header", "of another kind", "of Megatron"],
)
def test_a_shard_that_is_not_whole_is_found_in_the_dataset_s_own_words(tiny_data, tmp_path, break_, message, help_):
    """By its header and its size, before anything starts."""
    data = shutil.copytree(tiny_data, tmp_path / "broken")
    shard = data / "train_000000.bin"
    break_(shard)

    with pytest.raises(DataError) as caught:
        on(data)
    with pytest.raises(DataError) as at_run_time:
        find_parts(f"{data}/train_*.bin")

    assert caught.value.message == f"dataset.file_pattern: {shard}: {at_run_time.value.message}"
    assert message in caught.value.message
    assert help_ in caught.value.help
    assert caught.value.where == "--set dataset.file_pattern"


@pytest.mark.parametrize("cut", ["web.bin", "web.idx"])
def test_a_megatron_file_that_was_cut_is_found(tmp_path, cut):
    """The index says where the last sequence ends."""
    (tmp_path / "web.bin").write_bytes(bytes(12))
    (tmp_path / "web.idx").write_bytes(build_index(np.array([2, 4]), np.dtype("<u2")))
    os.truncate(tmp_path / cut, 60 if cut.endswith("idx") else 10)

    with pytest.raises(DataError, match=r"dataset\.paths: web\.bin: "):
        check(
            "dataset={_target_: automodel_cli.engine.data.megatron_dataset.MegatronPretraining, paths: web}",
            "validation_dataset=null",
            "step_scheduler.val_every_steps=null",
        )


def test_data_of_two_tokenizers_is_refused(tiny_data, tmp_path):
    """A val_loss over ids of another vocabulary means nothing; both names, at the second."""
    other = shutil.copytree(tiny_data, tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["tokenizer"] |= {"name": "gpt3", "sha256": "0" * 64}
    (other / "manifest.json").write_text(json.dumps(manifest))

    with pytest.raises(DataError, match=r"validation_dataset.file_pattern was made with the tokenizer 'gpt3', but dat"):
        on(tiny_data, f"validation_dataset.file_pattern={other}/val_*.bin")


def test_less_data_than_a_batch_is_said(tiny_data):
    """The run goes round and round in it."""
    notes = on(tiny_data, "step_scheduler.global_batch_size=100000", "step_scheduler.local_batch_size=10").notes

    assert len(notes) == 1
    assert "a step takes global_batch_size = 100,000" in notes[0]
