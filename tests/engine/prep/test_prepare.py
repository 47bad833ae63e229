"""Preparation end to end: budgets, splits, repeatability, and what happens to a directory."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automodel_cli.engine.prep.output_dir import clear
from automodel_cli.engine.prep.pipeline import Committer
from automodel_cli.engine.prep.prep_options import SourceOptions, TextDocuments
from automodel_cli.engine.prep.prepare import PrepOptions, PrepProgress, PrepResult, prepare
from automodel_cli.engine.prep.tokenizer import Encoded
from automodel_cli.engine.shards.tokens import Tokens, read_shard_header
from automodel_cli.errors import DataError, UsageError

BOS = 256


def write_corpus(path: Path, documents) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return str(path)


def options(source, directory, **settings_) -> PrepOptions:
    return PrepOptions(**{"source": str(source), "tokenizer": "bytes", "output_dir": directory, **settings_})


def read_split(directory: Path, split: str) -> list[int]:
    """All tokens of a split, shard after shard."""
    shards = [Tokens(read_shard_header(path))[:] for path in sorted(directory.glob(f"{split}_*.bin"))]
    return np.concatenate(shards).tolist() if shards else []


def documents_of(tokens: list[int]) -> list[str]:
    """The documents between BOS tokens."""
    text = "".join("\0" if token == BOS else chr(token) for token in tokens)
    return text.split("\0")[1:]


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def prepared_or_refused(wanted: PrepOptions) -> PrepResult | DataError:
    try:
        return prepare(wanted)
    except DataError as error:
        return error


# Every document is different from all others, so that each can be found again.
CORPUS = st.lists(st.integers(1, 60), min_size=1, max_size=40).map(
    lambda lengths: [f"{number}:".ljust(length, "abcdefghij"[number % 10]) for number, length in enumerate(lengths)]
)


def test_data_that_is_refused_at_its_end_is_deleted_when_it_is_written(tmp_path, monkeypatch):
    """Not while full shards are still being flushed: what is written would vanish under the deletion, or come back."""
    run, begun = Committer.run, []

    def slowly(self, task):
        begun.append(run(self, lambda: (time.sleep(0.1), task())[1]))
        return begun[-1]

    def deleted(directory, **options_):
        assert all(task.done() for task in begun)
        clear(directory, **options_)

    monkeypatch.setattr(Committer, "run", slowly)
    monkeypatch.setattr("automodel_cli.engine.prep.prepare.clear", deleted)
    source = write_corpus(tmp_path / "c.jsonl", ["0:", "1:", "2:cccc", "3:dddddd", *(f"{n}:" for n in range(4, 10))])

    refused = prepared_or_refused(options(source, tmp_path / "out", val_tokens=1, shard_tokens=40))

    assert isinstance(refused, DataError)
    assert begun
    assert not list((tmp_path / "out").glob("*train*"))


@settings(max_examples=30, deadline=None)
@given(
    corpus=CORPUS,
    max_tokens=st.one_of(st.none(), st.integers(1, 900)),
    val_tokens=st.one_of(st.none(), st.integers(0, 300)),
    shard_tokens=st.integers(40, 400),
)
def test_budgets_are_exact_and_no_document_is_in_both_splits(
    tmp_path_factory, corpus, max_tokens, val_tokens, shard_tokens
):
    """Training has exactly its budget, cut inside its last document only; validation has whole documents."""
    directory = tmp_path_factory.mktemp("prep")
    source = write_corpus(directory / "corpus.jsonl", corpus)
    wanted = options(source, directory / "out", max_tokens=max_tokens, val_tokens=val_tokens, shard_tokens=shard_tokens)

    result = prepared_or_refused(wanted)

    # A corpus of one or a few documents may not have one to spare; nothing may look finished then.
    if isinstance(result, DataError):
        assert val_tokens
        assert "--val-tokens" in str(result)
        assert not (directory / "out" / "manifest.json").exists()
        return

    train, val = (read_split(directory / "out", split) for split in ("train", "val"))

    held_out, trained_on = documents_of(val), documents_of(train)
    assert set(held_out) <= set(corpus)
    assert trained_on[:-1] == [text for text in corpus if text not in set(held_out)][: len(trained_on) - 1]
    assert any(text.startswith(trained_on[-1]) and text not in held_out for text in corpus)
    assert len(set(held_out)) == len(held_out)
    if max_tokens is None:
        assert sorted(held_out + trained_on) == sorted(corpus)
    else:
        assert len(train) == max_tokens or sorted(held_out + trained_on) == sorted(corpus)
        assert (len(train) < max_tokens) == any("ended at" in note for note in result.notes)
    if val_tokens == 0:
        assert val == []
    for name, tokens in (("train", train), ("val", val)):
        if tokens:
            record = result.manifest.splits[name]
            assert record.num_tokens == len(tokens)
            assert record.num_documents == tokens.count(BOS)
            assert record.longest_document_tokens == max(len(text) + 1 for text in documents_of(tokens))
            assert record.max_token_id == max(tokens)
            counts = Counter(tokens).values()
            entropy = -sum(n / len(tokens) * math.log(n / len(tokens)) for n in counts)
            assert record.unigram_entropy_nats == pytest.approx(entropy, abs=1e-12)


def test_validation_is_spread_over_the_corpus(tmp_path):
    """Its documents come from every tenth of a corpus of 400 documents, at about the size that was asked."""
    corpus = [f"{number:04d} " + "x" * (20 + 37 * number % 80) for number in range(400)]
    total = sum(len(text) + 1 for text in corpus)

    prepare(options(write_corpus(tmp_path / "c.jsonl", corpus), tmp_path / "out", val_tokens=total // 10))

    numbers = [int(text[:4]) for text in documents_of(read_split(tmp_path / "out", "val"))]
    assert {number // 40 for number in numbers} == set(range(10))
    assert len(read_split(tmp_path / "out", "val")) == pytest.approx(total / 10, abs=200)


def test_a_single_text_says_how_its_lines_become_documents(tmp_path):
    """Without blank lines a text file is one document, which leaves none to validate on."""
    source = tmp_path / "log.txt"
    source.write_text("a line of the log\n" * 40)

    whole = prepare(options(source, tmp_path / "out"))
    by_line = SourceOptions(sources=(str(source),), text_documents=TextDocuments.LINE)
    lines = prepare(PrepOptions(by_line, tokenizer="bytes", output_dir=tmp_path / "lines"))

    assert "--text-documents line --overwrite" in whole.notes[0]
    assert "val" in lines.manifest.splits


def test_held_out_documents_are_as_long_as_the_others(tmp_path):
    """A choice that favoured short documents would measure another text than the one trained on."""
    rng = np.random.default_rng(0)
    corpus = [f"{n}:" + "x" * int(length) for n, length in enumerate(rng.exponential(300, size=3000))]

    prepare(options(write_corpus(tmp_path / "c.jsonl", corpus), tmp_path / "out", val_tokens=90_000))

    lengths = [len(text) for text in documents_of(read_split(tmp_path / "out", "val"))]
    assert np.mean(lengths) == pytest.approx(np.mean([len(text) for text in corpus]), rel=0.25)


@pytest.mark.parametrize(
    "work", [{"chunk_size": 1, "num_workers": 3}, {"chunk_size": 7, "num_workers": 1, "prefetch": 1}]
)
def test_how_the_work_is_divided_changes_no_byte(tmp_path, work):
    """Chunks, threads and queues are for speed only: every file is equal, the manifest too."""
    wanted = PrepOptions("shakespeare", output_dir=tmp_path / "a", max_tokens=300_000, shard_tokens=70_000)
    prepare(wanted)

    prepare(replace(wanted, output_dir=tmp_path / "b", **work))

    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_a_boundary_token_spelled_out_in_a_text_is_no_boundary(tmp_path):
    """`<|endoftext|>` in a document is thirteen characters of text, with the GPT-2 vocabulary too."""
    source = write_corpus(tmp_path / "c.jsonl", ["a<|endoftext|>b", "c"])

    prepare(options(source, tmp_path / "out", tokenizer="gpt2", val_tokens=0))

    assert read_split(tmp_path / "out", "train").count(50_256) == 2


def test_empty_documents_are_left_out(tmp_path):
    """A lone BOS would teach a model to end at once."""
    source = write_corpus(tmp_path / "c.jsonl", ["", "a", " \n", "b"])

    prepare(options(source, tmp_path / "out", val_tokens=0))

    assert documents_of(read_split(tmp_path / "out", "train")) == ["a", "b"]


def test_a_source_without_text_is_refused(tmp_path):
    """Nothing is left that looks finished."""
    source = write_corpus(tmp_path / "c.jsonl", ["", " "])

    with pytest.raises(DataError, match="holds no text"):
        prepare(options(source, tmp_path / "out"))

    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_vocabulary_beyond_two_bytes_gets_four(tmp_path, monkeypatch):
    """Ids above 65,535 come back as they were given."""

    class Wide:
        name, vocab_size, bos_id, eos_id, sha256 = "wide", 100_000, 99_999, None, "x"
        engine, json, unk_id = "wide", None, None

        def encode_batch(self, texts):
            return Encoded(np.array([70_000, 3] * len(texts), dtype=np.uint32), np.arange(len(texts) + 1) * 2)

    monkeypatch.setattr("automodel_cli.engine.prep.prep_plan.load_tokenizer", lambda name: Wide())

    prepare(options(write_corpus(tmp_path / "c.jsonl", ["a"]), tmp_path / "out", val_tokens=0))

    assert read_split(tmp_path / "out", "train") == [99_999, 70_000, 3]


def test_progress_rises_to_the_end(tmp_path, monkeypatch):
    """Fractions never fall and end at 1; the last report has all tokens, rates and a stage that sets the pace."""
    monkeypatch.setattr("automodel_cli.engine.prep.corpus.text_reader.PIECE_BYTES", 1 << 16)
    reports: list[PrepProgress] = []
    corpus = [f"document {number} {'word ' * 30}" for number in range(5000)]

    result = prepare(options(write_corpus(tmp_path / "c.jsonl", corpus), tmp_path / "out"), reports.append)

    fractions = [report.fraction for report in reports]
    assert len(fractions) > 3
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    last = reports[-1]
    assert last.train_tokens + last.val_tokens == result.manifest.num_tokens
    assert last.num_documents == 5000
    assert last.tokens_per_second > 0
    assert last.text_bytes_per_second > 0
    assert last.seconds_left == 0
    assert last.limited_by in ("reading", "tokenizing", "writing")


class TestDirectory:
    """What lies in the output directory before, during and after."""

    @pytest.fixture
    def corpus(self, tmp_path):
        return write_corpus(tmp_path / "c.jsonl", [f"document {number}" for number in range(40)])

    def test_finished_data_with_the_same_settings_are_left_alone(self, tmp_path, corpus):
        """No file is touched, and the caller is told."""
        first = prepare(options(corpus, tmp_path / "out"))
        before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}

        second = prepare(options(corpus, tmp_path / "out"))

        assert (first.reused, second.reused) == (False, True)
        assert second.manifest == first.manifest
        assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before

    @pytest.mark.parametrize(
        ("changed", "named"),
        [
            ({"max_tokens": 99}, "max_tokens is None there and 99 here"),
            ({"val_tokens": 30}, "val_tokens is None there and 30 here"),
            ({"shard_tokens": 77}, "shard_tokens is 100000000 there and 77 here"),
            ({"tokenizer": "gpt2"}, "tokenizer is 'bytes' there and 'gpt2' here"),
            ({"source": "shakespeare"}, "source is"),
        ],
    )
    def test_other_settings_are_refused_by_name_and_can_overwrite(self, tmp_path, corpus, changed, named):
        """The data stay as they are until the user says so; then they are as if made there first."""
        directory = tmp_path / "out"
        prepare(options(corpus, directory))
        before = files_of(directory)
        with pytest.raises(DataError, match="other settings") as caught:
            prepare(options(**{"source": corpus, "directory": directory, **changed}))
        assert named in str(caught.value)
        assert "sha256" not in str(caught.value)
        assert files_of(directory) == before

        prepare(options(**{"source": corpus, "directory": directory, "overwrite": True, **changed}))

        prepare(options(**{"source": corpus, "directory": tmp_path / "fresh", **changed}))
        assert files_of(directory) == files_of(tmp_path / "fresh")

    def test_changed_text_under_the_same_name_is_noticed(self, tmp_path, corpus):
        """By its hash."""
        prepare(options(corpus, tmp_path / "out"))
        write_corpus(Path(corpus), ["another text"] * 9)

        with pytest.raises(DataError, match="source sha256"):
            prepare(options(corpus, tmp_path / "out"))

    def test_a_missing_or_cut_shard_is_noticed(self, tmp_path, corpus):
        """Finished data that are no longer whole are not reused."""
        prepare(options(corpus, tmp_path / "out"))
        shard = tmp_path / "out" / "train_000000.bin"
        shard.write_bytes(shard.read_bytes()[:-2])

        with pytest.raises(DataError, match=r"train_000000\.bin has [\d,]+ bytes, but the manifest says"):
            prepare(options(corpus, tmp_path / "out"))
        shard.unlink()
        with pytest.raises(DataError, match=r"train_000000\.bin is missing"):
            prepare(options(corpus, tmp_path / "out"))

    def test_shards_of_unknown_origin_are_never_deleted_unasked(self, tmp_path, corpus):
        """No manifest and no marker: they may be the user's only copy."""
        shard = tmp_path / "out" / "train_000000.bin"
        shard.parent.mkdir()
        shard.write_bytes(b"precious")

        with pytest.raises(DataError, match="1 shard files without a manifest"):
            prepare(options(corpus, tmp_path / "out"))

        assert files_of(tmp_path / "out") == {"train_000000.bin": b"precious"}

    def test_other_files_are_left_where_they_are(self, tmp_path, corpus):
        """Even when overwriting."""
        prepare(options(corpus, tmp_path / "out"))
        (tmp_path / "out" / "train_notes.txt").write_text("mine")

        prepare(options(corpus, tmp_path / "out", max_tokens=50, overwrite=True))

        assert (tmp_path / "out" / "train_notes.txt").read_text() == "mine"

    def test_two_runs_cannot_write_one_directory(self, tmp_path, corpus):
        """The second is refused while the first is at work, and does it no harm."""
        refusals = []

        def start_another(_):
            with pytest.raises(DataError, match="another `amcli prep`") as caught:
                prepare(options(corpus, tmp_path / "out", overwrite=True))
            refusals.append(caught.value)

        prepare(options(corpus, tmp_path / "out"), start_another)

        prepare(options(corpus, tmp_path / "fresh"))
        assert len(refusals) == 1
        assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")

    def test_an_exception_leaves_nothing_that_looks_finished(self, tmp_path, corpus):
        """No manifest and no shard under its name; the next run goes on and gives what it always gives."""

        def interrupt(_):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            prepare(options(corpus, tmp_path / "out"), interrupt)
        assert not list((tmp_path / "out").glob("[a-z]*.bin"))
        assert not (tmp_path / "out" / "manifest.json").exists()

        prepare(options(corpus, tmp_path / "out"))

        prepare(options(corpus, tmp_path / "fresh"))
        assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"max_tokens": 0}, "--max-tokens is 0"),
        ({"val_tokens": -1}, "--val-tokens is -1"),
        ({"shard_tokens": 2**31}, "--shard-tokens is 2,147,483,648"),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_written(tmp_path, wrong, complaint):
    """The directory is not even made."""
    with pytest.raises(UsageError, match=complaint):
        prepare(options("shakespeare", tmp_path / "out", **wrong))

    assert not (tmp_path / "out").exists()


def test_more_validation_than_text_is_refused(tmp_path):
    """All of the text in validation leaves nothing to train on, or no document can be held out."""
    source = write_corpus(tmp_path / "c.jsonl", ["only one document"])

    with pytest.raises(DataError, match="no whole document could be held out"):
        prepare(options(source, tmp_path / "out", val_tokens=10))


def test_the_embedded_text_needs_no_option():
    """`amcli prep shakespeare`: bytes, both splits, 5 to 10 % held out, nothing to note."""
    result = prepare(PrepOptions("shakespeare"))

    manifest = result.manifest
    assert result.directory == Path("data/shakespeare")
    assert (manifest.tokenizer.name, manifest.num_documents, manifest.num_tokens) == ("bytes", 149, 1_034_102 + 149)
    assert 0.05 < manifest.splits["val"].num_tokens / manifest.num_tokens < 0.10
    assert 3.0 < manifest.unigram_entropy_nats["val"] < 3.6
    assert result.notes == ()
