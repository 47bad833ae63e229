"""Texts that are tokenized while they are read: every token once, and a run that resumes exactly."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automodel_cli import app
from automodel_cli.engine.data.text_stream import TokenizedTextStream
from automodel_cli.errors import DataError


class Letters:
    """A tokenizer of 26 letters, and a BOS."""

    bos_token_id = 26
    eos_token_id = None

    def __len__(self):
        return 27

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [ord(letter) - 97 for letter in text]}


def stream_of(texts, seq_len=4, **more):
    return TokenizedTextStream([{"text": text} for text in texts], Letters(), seq_len, **more)


@given(st.lists(st.text("abcxyz", max_size=9), max_size=12), st.integers(1, 6))
def test_every_transition_is_trained_on_once(texts, seq_len):
    """The inputs, with the last label, are the documents with their BOS, up to what is no whole sample."""
    whole = [token for text in texts for token in [26, *(ord(letter) - 97 for letter in text)]]

    samples = list(stream_of(texts, seq_len))

    tokens = [int(token) for sample in samples for token in sample["input_ids"]]
    tokens += [int(samples[-1]["labels"][-1])] if samples else []
    assert tokens == whole[: len(tokens)]
    assert len(whole) - len(tokens) < seq_len + (not samples)
    assert all(list(s["labels"][:-1]) == list(s["input_ids"][1:]) for s in samples)


@given(st.lists(st.text("abc", max_size=9), max_size=12), st.integers(0, 9))
def test_a_saved_place_gives_the_rest(texts, before):
    """And the pass after it is whole again."""
    whole = [list(sample["labels"]) for sample in stream_of(texts)]
    first = stream_of(texts)
    begun = iter(first)
    for _ in range(min(before, len(whole))):
        next(begun)
    second = stream_of(texts)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))

    assert [list(sample["labels"]) for sample in second] == whole[min(before, len(whole)) :]
    assert [list(sample["labels"]) for sample in second] == whole


def test_a_pass_that_was_left_early_does_not_leak_into_the_next():
    """As a validation leaves it."""
    stream = stream_of(["abcdefghij"])
    first = list(next(iter(stream))["input_ids"])

    assert list(next(iter(stream))["input_ids"]) == first


def test_what_has_no_text_or_no_beginning_is_refused():
    """With the columns that there are, and what would work."""
    with pytest.raises(DataError, match="no `body`"):
        list(stream_of(["abc"], text_column="body"))
    tokenizer = Letters()
    tokenizer.bos_token_id = None
    with pytest.raises(DataError, match="neither a BOS nor an EOS"):
        TokenizedTextStream([], tokenizer, 4)


@pytest.fixture
def hub_run(tiny_run, monkeypatch):
    """The tiny run over a stream of `datasets` from a local file, with a tokenizer from a directory."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("datasets")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [f"w{number}" for number in range(50)]
    vocabulary = {word: index for index, word in enumerate(["<s>", "?", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="?").save_pretrained("tok")
    rows = [{"text": " ".join(words[(i * j) % 50] for j in range(5, 30))} for i in range(40)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = """
  _target_: automodel_cli.engine.data.text_stream.TokenizedTextStream
  dataset: {_target_: datasets.load_dataset, path: json, data_files: rows.jsonl, split: train, streaming: true}
  tokenizer: tok
  seq_len: 16
"""
    lines = tiny_run.read_text().splitlines()
    begin, end = lines.index("dataset: &data"), next(i for i, line in enumerate(lines) if line.startswith("optimizer"))
    text = "\n".join([*lines[:begin], f"dataset:{section}", f"validation_dataset:{section}", *lines[end:]])
    tiny_run.write_text(text)
    return tiny_run


def weights(root, step):
    return hashlib.sha256(Path(f"{root}/step_{step:06}/model/model.safetensors").read_bytes()).hexdigest()


def test_a_streamed_run_resumes_bit_for_bit(hub_run, capsys):
    """10 steps in one go have the weights of 4 and 6 more, over the end of the data; validation is finite."""
    long = ["--set", "step_scheduler.max_steps=10", "--set", "lr_scheduler.lr_decay_steps=10"]
    assert app.run(["pretrain", "-c", str(hub_run), *long, "--set", "checkpoint.checkpoint_dir=one"]) == 0
    short = ["--set", "step_scheduler.max_steps=4", "--set", "lr_scheduler.lr_decay_steps=10"]
    assert app.run(["pretrain", "-c", str(hub_run), *short, "--set", "checkpoint.checkpoint_dir=two"]) == 0
    assert app.run(["resume", "two", "-c", str(hub_run), *long, "--set", "checkpoint.checkpoint_dir=two"]) == 0

    assert weights("one", 10) == weights("two", 10)
    assert "a stream of samples, 8 per step" in capsys.readouterr().out


def test_a_stream_is_never_validated_to_an_end_that_may_not_come(hub_run, capsys):
    """Refused, with the two settings that bound it."""
    assert app.run(["pretrain", "-c", str(hub_run), "--set", "step_scheduler.val_batches=null"]) == 2

    assert "step_scheduler.val_tokens" in capsys.readouterr().err
