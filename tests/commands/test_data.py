"""`amcli data` as people and scripts meet it: what is printed where, and the exit code."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from automodel_cli.app import run
from automodel_cli.engine.prep.prep_options import Partition, PrepOptions
from automodel_cli.engine.prep.prepare import prepare


@pytest.fixture
def data(tiny_data, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(tiny_data, tmp_path / "data")


def test_verify_says_that_sound_data_is_sound(data, capsys):
    """One line on standard output; progress goes to standard error."""
    status = run(["data", "verify", str(data)])

    out, err = capsys.readouterr()
    assert status == 0
    assert out.startswith(f"{data} is sound: 2 shards, ")
    assert "verifying: " in err


def test_verify_exits_with_the_code_of_data_and_lists_every_problem(data, capsys):
    """For people as lines, for scripts as JSON with stable keys."""
    shard = data / "val_000000.bin"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    (data / "train_000000.bos.idx").unlink()

    assert run(["data", "verify", str(data)]) == 3
    plain = capsys.readouterr().out
    assert run(["data", "verify", str(data), "--json"]) == 3
    out, err = capsys.readouterr()

    found = json.loads(out)
    assert err == ""
    assert sorted(found) == [
        "directory",
        "has_manifest",
        "is_sound",
        "note",
        "num_bytes",
        "num_shards",
        "num_tokens",
        "problems",
    ]
    assert found["is_sound"] is False
    assert {"bos_index", "sha256", "token_range"} <= {problem["kind"] for problem in found["problems"]}
    assert all(problem["message"] in plain for problem in found["problems"])


def test_a_wrong_argument_is_a_matter_of_usage(tmp_path, capsys):
    """Not of data."""
    assert run(["data", "verify", str(tmp_path / "nowhere")]) == 2
    assert run(["data", "verify", str(tmp_path)]) == 3
    capsys.readouterr()


def test_inspect_shows_manifest_lengths_and_tokens(data, capsys):
    """Every field of the manifest, bars of document lengths, and the most frequent token as text."""
    assert run(["data", "inspect", str(data)]) == 0

    out = capsys.readouterr().out
    for wanted in ("vocab_size", "sha256", "unigram_entropy_nats", "train_000000.bin", "█", "' '"):
        assert wanted in out


def test_inspect_as_json_has_the_same_facts(data, capsys):
    """Manifest and splits, with the text of each token."""
    assert run(["data", "inspect", str(data), "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    train = found["splits"]["train"]
    assert train["num_tokens"] == found["manifest"]["splits"]["train"]["num_tokens"] == 50_000
    assert train["num_documents"] == found["manifest"]["splits"]["train"]["num_documents"]
    assert sum(bin_["num_documents"] for bin_ in train["lengths"]) == train["num_documents"]
    assert train["top_tokens"][0]["text"] == " "


def test_a_document_comes_back_as_its_text(tmp_path, capsys):
    """By number and by a token in it; the text alone on standard output, what precedes it aside."""
    texts = [f"Document {number} says: é \u2014 {'la ' * number}".strip() for number in range(20)]
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data = tmp_path / "data"
    prepare(PrepOptions(source=str(source), tokenizer="bytes", val_tokens=0, shard_tokens=64, output_dir=data))

    for number in (0, 7, 19):
        assert run(["data", "inspect", str(data), "--doc", str(number)]) == 0
        assert capsys.readouterr().out == f"{texts[number]}\n"
    begin = sum(len(text.encode()) + 1 for text in texts[:7])
    assert run(["data", "inspect", str(data), "--offset", str(begin + 3), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)

    assert (found["number"], found["text"], found["split"]) == (7, texts[7], "train")
    assert len(found["token_ids"]) == len(texts[7].encode()) + 1


def test_shards_of_others_are_decoded_with_a_tokenizer_that_is_named(data, capsys):
    """Without a manifest; and without a tokenizer the token ids are printed."""
    assert run(["data", "inspect", str(data), "--doc", "1"]) == 0
    text = capsys.readouterr().out
    (data / "manifest.json").unlink()

    assert run(["data", "inspect", str(data), "--doc", "1", "--split", "train", "--tokenizer", "bytes"]) == 0
    assert capsys.readouterr().out == text
    assert run(["data", "inspect", str(data), "--doc", "1", "--split", "train"]) == 0
    out, err = capsys.readouterr()
    assert out.split()[1:] == [str(byte) for byte in text[:-1].encode()]
    assert "--tokenizer" in err


def test_a_document_that_does_not_exist_is_an_error(data, capsys):
    """With the number of those that do."""
    assert run(["data", "inspect", str(data), "--doc", "100000"]) == 2
    assert "counted from 0" in capsys.readouterr().err
    assert run(["data", "inspect", str(data), "--doc", "0", "--split", "test"]) == 2
    assert "its splits are train, val" in capsys.readouterr().err


def test_a_tokenizer_that_changed_since_is_refused(data, edit_manifest, capsys):
    """Its text would be another."""
    edit_manifest(data, lambda raw: raw["tokenizer"].update(sha256="1" * 64))

    assert run(["data", "inspect", str(data), "--doc", "0"]) == 3
    assert "not the one that made the data" in capsys.readouterr().err


def test_merging_what_is_no_part_is_an_error(data, tmp_path, capsys):
    """With the command that makes parts."""
    assert run(["data", "merge", str(data), "--output", str(tmp_path / "whole")]) == 3
    assert "--partition i/N" in capsys.readouterr().err


TEXTS = [f"Text {number}: {'word ' * (number % 7 + 1)}".strip() for number in range(60)]


@pytest.mark.parametrize("form", ["bin", "legacy", "megatron"])
@pytest.mark.parametrize("tokenizer", ["bytes", "gpt2"])
def test_every_format_is_sound_and_comes_back_as_text(tmp_path, capsys, form, tokenizer):
    """Also where one token both begins and ends a document, as GPT-2's does, and documents cross shards."""
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    data = tmp_path / "data"
    options = PrepOptions(str(source), tokenizer=tokenizer, output_dir=data, format=form, val_tokens=0)
    prepare(replace(options, shard_tokens=64, eos=tokenizer == "gpt2"))

    assert run(["data", "verify", str(data)]) == 0
    capsys.readouterr()
    for number in (0, 17, 59):
        assert run(["data", "inspect", str(data), "--doc", str(number)]) == 0
        assert capsys.readouterr().out == f"{TEXTS[number]}\n"


def test_parts_of_a_source_are_merged_to_the_whole(tmp_path, capsys):
    """Three files in three parts: all documents, the counts of what was read, and sound."""
    for number in range(3):
        lines = [json.dumps({"text": text}) for text in [*TEXTS[number::3], ""]]
        (tmp_path / f"texts{number}.jsonl").write_text("\n".join(lines) + "\n")
    for index in range(3):
        options = PrepOptions(str(tmp_path / "texts*.jsonl"), tokenizer="bytes", output_dir=tmp_path / "parts")
        prepare(replace(options, val_tokens=0, partition=Partition(index, 3)))
    parts = sorted(str(path) for path in (tmp_path / "parts").iterdir())

    assert run(["data", "merge", *parts, "--output", str(tmp_path / "whole"), "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)["manifest"]
    assert run(["data", "verify", str(tmp_path / "whole")]) == 0

    first = manifest["reading"]["first_skipped"]["empty"]
    assert first == {"where": f"{tmp_path}/texts0.jsonl:{len(TEXTS[::3]) + 1}", "found": ""}
    assert manifest["splits"]["train"]["num_documents"] == len(TEXTS)
    assert manifest["reading"]["num_documents"] == len(TEXTS)
    assert manifest["reading"]["skipped"] == {"empty": 3}
