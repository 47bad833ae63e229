"""Every option of preparation does what it says, and the manifest says it too."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from automodel_cli.engine.prep.estimate import estimate
from automodel_cli.engine.prep.prep_options import OverLength, Partition, parse_partition
from automodel_cli.engine.prep.prep_plan import default_output_dir, make_plan
from automodel_cli.engine.prep.prepare import PrepOptions, prepare
from automodel_cli.engine.shards.manifest import load_manifest
from automodel_cli.engine.shards.merge import merge
from automodel_cli.engine.shards.tokens import Tokens, read_shard_header
from automodel_cli.errors import DataError, UsageError

BOS = 256


@pytest.fixture
def corpus(tmp_path) -> str:
    """200 documents, each of which can be told from all others."""
    lines = [json.dumps({"text": f"{number:03d}" + "abcdefghij"[number % 10] * (number % 37)}) for number in range(200)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    return str(tmp_path / "corpus.jsonl")


@pytest.fixture
def wanted(corpus, tmp_path) -> PrepOptions:
    return PrepOptions(corpus, tokenizer="bytes", output_dir=tmp_path / "out", val_tokens=0)


def train_of(directory: Path) -> list[int]:
    shards = [Tokens(read_shard_header(path))[:] for path in sorted(directory.glob("train_*.bin"))]
    return np.concatenate(shards).tolist()


def documents_of(directory: Path) -> list[str]:
    return "".join("\0" if token == BOS else chr(token) for token in train_of(directory)).split("\0")[1:]


def save_tokenizer(directory: Path, **config) -> str:
    """A `tokenizer.json` of words, with the configuration that names its special tokens."""
    directory.mkdir()
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content = {
        "version": "1.0",
        "added_tokens": [{"id": 2, "content": "<end>", **special}, {"id": 3, "content": "<s>", **special}],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1}, "unk_token": "[UNK]"},
    }
    (directory / "tokenizer.json").write_text(json.dumps(content))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return str(directory)


def test_shuffling_moves_documents_within_their_block_only(wanted, tmp_path):
    """Every document once; the order depends on the seed, and is another in each block."""
    prepare(wanted)
    in_order = documents_of(tmp_path / "out")

    prepare(replace(wanted, shuffle_buffer=50, output_dir=tmp_path / "s0"))
    prepare(replace(wanted, shuffle_buffer=50, seed=1, output_dir=tmp_path / "s1"))

    shuffled, other = documents_of(tmp_path / "s0"), documents_of(tmp_path / "s1")
    assert shuffled != in_order != other != shuffled
    for begin in range(0, 200, 50):
        assert sorted(shuffled[begin : begin + 50]) == in_order[begin : begin + 50]
    places = [[int(text[:3]) % 50 for text in shuffled[begin : begin + 50]] for begin in range(0, 200, 50)]
    assert places[0] != places[1]


def test_long_documents_are_cut_or_split_and_counted(wanted, tmp_path):
    """Nothing is longer than the limit; splitting keeps every character, cutting the beginnings."""
    prepare(wanted)
    whole = documents_of(tmp_path / "out")

    cut = prepare(replace(wanted, max_length=11, output_dir=tmp_path / "cut"))
    split = prepare(replace(wanted, max_length=11, over_length=OverLength.SPLIT, output_dir=tmp_path / "split"))

    assert documents_of(tmp_path / "cut") == [text[:10] for text in whole]
    assert "".join(documents_of(tmp_path / "split")) == "".join(whole)
    too_long = sum(len(text) > 10 for text in whole)
    for result in (cut, split):
        assert result.manifest.splits["train"].over_length_documents == too_long
        assert result.manifest.splits["train"].longest_document_tokens == 11
        assert result.manifest.reading.num_documents == 200


def test_boundary_tokens_can_be_chosen(tmp_path, wanted):
    """BOS and EOS around a document, one of them, or none; the manifest has their ids."""
    name = save_tokenizer(tmp_path / "tok", bos_token="<s>", eos_token={"content": "<end>"})
    (tmp_path / "words.jsonl").write_text('{"text": "a a"}\n{"text": "<s> a"}\n')
    wanted = replace(wanted, source=str(tmp_path / "words.jsonl"), tokenizer=name, overwrite=True)

    found = {}
    for bos in (True, False):
        for eos in (True, False):
            manifest = prepare(replace(wanted, bos=bos, eos=eos)).manifest
            found[bos, eos] = train_of(tmp_path / "out")
            assert (manifest.tokenizer.bos_id, manifest.tokenizer.eos_id) == (3 if bos else None, 2 if eos else None)
            assert (tmp_path / "out" / "train_000000.bos.idx").exists() == bos

    assert found == {
        (True, True): [3, 1, 1, 2, 3, 0, 1, 2],
        (True, False): [3, 1, 1, 3, 0, 1],
        (False, True): [1, 1, 2, 0, 1, 2],
        (False, False): [1, 1, 0, 1],
    }


def test_text_that_a_tokenizer_does_not_know_is_counted_and_said(tmp_path, wanted):
    """In the manifest and in a note, with the share; also for data that are there already, and for merged parts."""
    name = save_tokenizer(tmp_path / "tok", bos_token="<s>")
    (tmp_path / "words.jsonl").write_text('{"text": "a a"}\n{"text": "what is this a"}\n')
    wanted = replace(wanted, source=str(tmp_path / "words.jsonl"), tokenizer=name, val_tokens=0)

    result, again = prepare(wanted), prepare(wanted)
    part = prepare(replace(wanted, partition=Partition(0, 1)))
    merged = merge([part.directory], tmp_path / "merged")

    assert result.manifest.splits["train"].unknown_tokens == train_of(tmp_path / "out").count(0) == 3
    assert merged.manifest.splits["train"].unknown_tokens == 3
    for made in (result, again):
        assert any("3 of 8 tokens (37.50%) stand for text" in note for note in made.notes)


def test_a_tokenizer_that_makes_no_token_is_named(tmp_path, wanted):
    """The source does hold text."""
    from tokenizers import Tokenizer, models

    (tmp_path / "tok").mkdir()
    Tokenizer(models.BPE({"@": 0}, [])).save(str(tmp_path / "tok/tokenizer.json"))

    with pytest.raises(DataError, match="made no token of 200 documents"):
        prepare(replace(wanted, tokenizer=str(tmp_path / "tok"), bos=False))


def test_a_tokenizer_without_bos_says_what_to_do(tmp_path, wanted):
    """Neither a guess nor a silent stream without boundaries: --bos-token or --no-bos."""
    wanted = replace(wanted, tokenizer=save_tokenizer(tmp_path / "tok", eos_token="<end>"))
    with pytest.raises(UsageError, match=r"(?s)has no BOS token.*--bos-token TOKEN.*--no-bos"):
        prepare(wanted)
    assert not (tmp_path / "out").exists()

    assert prepare(replace(wanted, bos_token="<end>")).manifest.tokenizer.bos_id == 2
    with pytest.raises(UsageError, match=r"'<eos>' is no entry"):
        prepare(replace(wanted, bos_token="<eos>"))


def test_a_text_that_gives_bos_is_refused(tmp_path, wanted):
    """With an ordinary entry as BOS, a word in a text would become the beginning of a document."""
    (tmp_path / "words.jsonl").write_text('{"text": "b a"}\n')
    wanted = replace(wanted, source=str(tmp_path / "words.jsonl"), tokenizer=save_tokenizer(tmp_path / "tok"))

    with pytest.raises(DataError, match="a text contains the BOS token 1 itself"):
        prepare(replace(wanted, bos_token="a"))


def test_an_eos_that_does_not_exist_is_refused(tmp_path, wanted):
    """Before anything is written."""
    with pytest.raises(UsageError, match="--eos needs an end-of-text token"):
        prepare(replace(wanted, tokenizer=save_tokenizer(tmp_path / "tok", bos_token="<s>"), eos=True))


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"max_length": 1}, "no room for text"),
        ({"max_length": 0}, "--max-length is 0"),
        ({"bos": False, "bos_token": "a"}, "contradict"),
        ({"seed": -1}, "--seed is -1"),
        ({"shuffle_buffer": -1}, "--shuffle-buffer is -1"),
        ({"chunk_size": 0}, "--chunk-size is 0"),
        ({"num_workers": 0}, "--num-workers is 0"),
        ({"prefetch": 0}, "--prefetch is 0"),
        ({"format": "arrow"}, "bin, legacy, megatron"),
        ({"partition": Partition(0, 9), "max_tokens": 5}, None),
        ({"partition": Partition(8, 9), "max_tokens": 5}, "leaves nothing for part 8/9"),
    ],
)
def test_contradictions_are_refused_before_anything_is_written(wanted, tmp_path, wrong, complaint):
    """The message names the option; the directory is not even made."""
    if complaint is None:
        prepare(replace(wanted, **wrong))
        return
    with pytest.raises(UsageError, match=complaint):
        prepare(replace(wanted, **wrong))

    assert not (tmp_path / "out").exists()


@pytest.fixture
def in_three_files(corpus, wanted, tmp_path) -> PrepOptions:
    lines = Path(corpus).read_text().splitlines()
    for part in range(3):
        (tmp_path / f"part{part}.jsonl").write_text("\n".join(lines[part::3]))
    return replace(wanted, source=str(tmp_path / "part*.jsonl"))


def test_a_part_without_text_says_so(wanted):
    """200 documents are too few to be divided."""
    with pytest.raises(DataError, match="part 2/3 of the source holds no text"):
        prepare(replace(wanted, partition=Partition(2, 3)))


def test_the_parts_of_a_source_hold_every_document_once(in_three_files, tmp_path):
    """Each in a directory of its own, and all with the settings of the whole."""
    wanted = in_three_files
    prepare(wanted)

    parts = [prepare(replace(wanted, partition=Partition(index, 3))) for index in range(3)]

    assert sorted(text for part in parts for text in documents_of(part.directory)) == sorted(
        documents_of(tmp_path / "out")
    )
    assert [part.directory.name for part in parts] == [f"part-0000{index}-of-00003" for index in range(3)]
    assert [part.manifest.settings["partition"] for part in parts] == ["0/3", "1/3", "2/3"]


def test_merged_parts_say_what_was_read_for_all(in_three_files, tmp_path):
    """Texts and bytes of the source add up to those of the whole."""
    whole = prepare(in_three_files).manifest
    parts = [prepare(replace(in_three_files, partition=Partition(index, 3))).directory for index in range(3)]

    merged = merge(parts, tmp_path / "merged").manifest

    assert merged.reading == whole.reading
    assert merged.num_tokens == whole.num_tokens


def test_the_parts_share_the_budget(in_three_files):
    """Together exactly as many tokens as were asked for."""
    parts = [
        prepare(replace(in_three_files, max_tokens=1001, partition=Partition(index, 3))).manifest for index in range(3)
    ]

    assert [part.splits["train"].num_tokens for part in parts] == [334, 334, 333]
    assert {part.settings["max_tokens"] for part in parts} == {1001}


@pytest.mark.parametrize("text", ["", "3", "1/0", "3/3", "-1/3", "a/b", "1/2/3"])
def test_what_is_no_part_is_refused(text):
    """Parts are counted from 0."""
    with pytest.raises(UsageError, match="part"):
        parse_partition(text)


def test_a_dry_run_comes_close_and_writes_nothing(wanted, tmp_path):
    """Tokens and bytes as they turn out, for a budget and for a whole file."""
    found = estimate(wanted)
    limited = estimate(replace(wanted, max_tokens=1000, tokenizer="gpt2"))

    assert not (tmp_path / "out").exists()
    made = prepare(wanted).manifest
    assert found.num_tokens == pytest.approx(made.num_tokens, rel=0.01)
    assert found.output_bytes == 2 * found.num_tokens
    assert found.seconds > 0
    assert (limited.num_tokens, limited.engine[:9]) == (1000, "fastokens")


def test_the_manifest_says_how_the_data_were_made(wanted, tmp_path):
    """Source, tokenizer, settings, counts, programs, and for each shard its hash and its place in the source."""
    manifest = prepare(replace(wanted, val_tokens=200, shard_tokens=1000)).manifest

    assert manifest == load_manifest(tmp_path / "out")
    assert manifest.reading.num_documents == 200
    assert manifest.reading.source_bytes == (tmp_path / "corpus.jsonl").stat().st_size
    assert set(manifest.versions) == {"python", "tokenizer_engine"}
    assert manifest.settings["val_tokens"] == 200
    assert all(len(shard.sha256) == 64 for split in manifest.splits.values() for shard in split.shards)


def test_manifests_of_the_first_format_are_still_read(wanted, tmp_path):
    """And data made before an option existed count as made with its default."""
    prepare(wanted)
    path = tmp_path / "out" / "manifest.json"
    raw = json.loads(path.read_text())
    raw["format_version"] = 1
    raw["settings"] = {
        key: raw["settings"][key] for key in ("max_tokens", "val_tokens", "val_share", "shard_tokens", "text_column")
    }
    del raw["manifest_sha256"], raw["reading"], raw["versions"], raw["tokenizer"]["eos_id"]
    for split in raw["splits"].values():
        del split["over_length_documents"]
        for shard in split["shards"]:
            del shard["source_cursor"]
    path.write_text(json.dumps(raw))

    assert prepare(wanted).reused
    with pytest.raises(DataError, match="max_length is None there and 9 here"):
        prepare(replace(wanted, max_length=9))


def test_a_directory_in_the_place_of_the_progress_is_named(wanted, tmp_path):
    """Before there is a manifest and after."""
    (tmp_path / "out/progress.json").mkdir(parents=True)
    with pytest.raises(DataError, match="not a regular file"):
        prepare(wanted)
    (tmp_path / "out/progress.json").rmdir()
    prepare(wanted)
    (tmp_path / "out/progress.json").mkdir()

    with pytest.raises(DataError) as caught:
        prepare(wanted)

    assert caught.value.where == str(tmp_path / "out/progress.json")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("corpus-v1.5.jsonl", "corpus-v1.5"),
        ("corpus-v1.6.jsonl", "corpus-v1.6"),
        ("in/corpus.v1.5.JSONL.zst", "corpus.v1.5"),
        ("corpus-v1.5", "corpus-v1.5"),
        ("web-*.parquet", "web"),
        ("part-[0-9]-of-9.csv.gz", "part-_0-9_-of-9"),
        ("books/*.txt", "text"),
        ("notes.*", "notes"),
    ],
)
def test_versions_of_a_corpus_have_directories_of_their_own(source, name):
    """Only the ending of the kind and that of a compression are cut off; a pattern's signs become no pattern again."""
    assert default_output_dir(PrepOptions(source)) == Path("data") / name


def test_a_plan_names_the_directory_by_its_source(wanted):
    """`data/<name>` for files and for data sets on the hub alike."""
    assert make_plan(replace(wanted, output_dir=None)).directory == Path("data/corpus")
