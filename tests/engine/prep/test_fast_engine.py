"""The fast engine works only where it gives the same ids as the reference."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automodel_cli.engine.prep import fast_engine
from automodel_cli.engine.prep.corpus.open_source import open_source
from automodel_cli.engine.prep.fast_engine import FastEngine, adversarial_texts, choose_engine, is_equal
from automodel_cli.engine.prep.json_tokenizer import JsonTokenizer
from automodel_cli.engine.prep.load_tokenizer import load_tokenizer
from automodel_cli.engine.prep.prep_options import SourceOptions
from automodel_cli.engine.prep.tokenizer import Encoded
from tests.engine.prep.test_tokenizer import TEXTS


def arrow(texts) -> pa.Array:
    return pa.array(list(texts), pa.large_string())


@pytest.fixture(scope="module")
def gpt2():
    return load_tokenizer("gpt2")


@pytest.fixture(scope="module")
def fast(gpt2):
    return FastEngine(gpt2.json)


def test_it_equals_the_reference_on_adversarial_strings(gpt2, fast):
    """A 1 MB word, 100,000 spaces, controls, marks, emoji, special tokens written out, every code point to U+3000."""
    assert is_equal(gpt2, fast, arrow(adversarial_texts()))


def test_it_equals_the_reference_on_a_whole_corpus(gpt2, fast):
    """Every document of the embedded text, in batches as preparation reads them."""
    for batch in open_source(SourceOptions(sources=("shakespeare",))).batches():
        assert is_equal(gpt2, fast, batch.texts)


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXTS, max_size=4))
def test_it_equals_the_reference_on_any_text(gpt2, fast, texts):
    """Also in batches, where the texts must not see each other."""
    assert is_equal(gpt2, fast, arrow(texts))


def test_a_special_token_written_in_a_text_is_text(fast):
    """`<|endoftext|>` gives seven ids and no boundary."""
    ids = fast.encode_batch(arrow(["a<|endoftext|>b"])).ids

    assert 50_256 not in ids
    assert len(ids) > 5


@pytest.fixture
def short_list(monkeypatch):
    """The adversarial strings have a test of their own, and take a second."""
    monkeypatch.setattr(fast_engine, "adversarial_texts", lambda: ["hay"])


class Wrong:
    """An engine that differs in one id of one text."""

    engine = "wrong 1"

    def __init__(self, content):
        self._right = FastEngine(content)

    def encode_batch(self, texts):
        ids, offsets = self._right.encode_batch(texts)
        if "needle" in texts.to_pylist():
            ids = np.where(np.arange(len(ids)) == 0, 7, ids).astype(np.uint32)
        return Encoded(ids, offsets)


@pytest.mark.usefixtures("short_list")
def test_one_wrong_id_in_the_sample_makes_it_fall_back(gpt2, monkeypatch, tmp_path):
    """The reference does the work, and the note says so."""
    monkeypatch.setattr(fast_engine, "FastEngine", Wrong)

    assert choose_engine(gpt2, arrow(["hay"]), tmp_path).encoder.engine == "wrong 1"
    choice = choose_engine(gpt2, arrow(["hay", "needle"]), tmp_path)

    assert choice.encoder is gpt2
    assert "wrong 1 gives other ids" in choice.note


@pytest.mark.usefixtures("short_list")
def test_one_wrong_id_in_the_adversarial_strings_is_remembered(gpt2, monkeypatch, tmp_path):
    """The verdict is kept for this tokenizer and these versions, for good and for bad."""
    monkeypatch.setattr(fast_engine, "FastEngine", Wrong)
    monkeypatch.setattr(fast_engine, "adversarial_texts", lambda: ["needle"])

    assert choose_engine(gpt2, arrow(["hay"]), tmp_path).encoder is gpt2
    monkeypatch.setattr(fast_engine, "adversarial_texts", lambda: ["hay"])

    assert choose_engine(gpt2, arrow(["hay"]), tmp_path).encoder is gpt2
    assert choose_engine(gpt2, arrow(["hay"]), None).encoder.engine == "wrong 1"


@pytest.mark.usefixtures("short_list")
def test_a_batch_on_which_it_breaks_is_done_by_the_reference(gpt2, monkeypatch, tmp_path):
    """A panic of native code in the middle of a corpus costs a moment, not the run."""

    class Panic(BaseException):
        pass

    class Breaking(Wrong):
        def encode_batch(self, texts):
            if "needle" in texts.to_pylist():
                raise Panic
            return super().encode_batch(texts)

    monkeypatch.setattr(fast_engine, "FastEngine", Breaking)
    chosen = choose_engine(gpt2, arrow(["hay"]), tmp_path).encoder

    found = chosen.encode_batch(arrow(["hay", "needle"]))

    assert chosen.engine == "wrong 1"
    assert found.ids.tolist() == gpt2.encode_batch(arrow(["hay", "needle"])).ids.tolist()


@pytest.mark.usefixtures("short_list")
def test_a_broken_verdict_is_made_anew(gpt2, tmp_path):
    """Half a file in the cache is no verdict."""
    choose_engine(gpt2, arrow(["a"]), tmp_path)
    (verdict,) = (tmp_path / "tokenizer-proofs").iterdir()
    verdict.write_text('{"equ')

    assert choose_engine(gpt2, arrow(["a"]), tmp_path).note is None
    assert json.loads(verdict.read_text())["equal"] is True


@pytest.mark.usefixtures("short_list")
def test_what_it_cannot_load_the_reference_does(tmp_path):
    """A model that it does not know: no error, one note."""
    content = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1}, "unk_token": "[UNK]"}}
    tokenizer = JsonTokenizer("mine", json.dumps(content), None, None)

    choice = choose_engine(tokenizer, arrow(["a", "b"]), tmp_path)

    assert choice.encoder.encode_batch(arrow(["a", "b"])).ids.tolist() == [1, 0]
    if choice.encoder is tokenizer:
        assert "tokenizers" in choice.note


@pytest.mark.usefixtures("short_list")
def test_without_fastokens_the_reference_does_the_work(gpt2, monkeypatch, tmp_path):
    """On a machine for which there is no wheel."""
    monkeypatch.setitem(__import__("sys").modules, "fastokens", None)

    choice = choose_engine(gpt2, arrow(["a"]), tmp_path)

    assert choice.encoder is gpt2
    assert "not installed" in choice.note
