"""Tokenizers: equal to an independent implementation, reversible, and blind to special tokens in text."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from automodel_cli.engine.prep.gpt2_tokenizer import read_merges, vocabulary_bytes
from automodel_cli.engine.prep.package_data import SHAKESPEARE, read_asset
from automodel_cli.engine.prep.tokenizer import load_tokenizer
from automodel_cli.errors import DataError

# The pattern of GPT-2's release, in the form that tiktoken's regular expressions take.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

ADVERSARIAL = [
    "",
    " ",
    " " * 5000,
    "a" * 3000,
    "\n\n \t\r\n  x",
    "<|endoftext|>",
    "x<|endoftext|> <|endoftext|>y",
    "it's we'll they've I'm you'd IT'S we'LL",
    "\x00\x01\x7f\u0085\u00a0\u2028\u3000",
    "naïve café e\u0301 Ångström \ufb01",
    "日本語のテキスト 한국어 العربية עברית हिन्दी",
    "🎉👨‍👩‍👧‍👦🏳️‍🌈 \U0010ffff",
    "1234567890 3.14 ¹²³ Ⅷ ٣",
    "def f(x):\n    return x**2  # ok\n",
]

# Characters on which implementations of the pattern are known to disagree: spaces, marks, digits, emoji.
TEXTS = st.text(
    st.one_of(
        st.characters(codec="utf-8"), st.sampled_from("  \n\t'sdmtlvre09٣²<|>\u00a0\u0301\u200d\u2028🎉日\x85\x1c")
    ),
    max_size=60,
)


@pytest.fixture(scope="module")
def gpt2():
    return load_tokenizer("gpt2")


@pytest.fixture(scope="module")
def reference():
    """GPT-2 as tiktoken computes it, from the same merge list and without network."""
    ranks = {entry: token for token, entry in enumerate(vocabulary_bytes(read_merges()))}
    return tiktoken.Encoding(
        "gpt2-from-merges", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50_256}
    )


def test_gpt2_ids_equal_those_known_from_its_release(gpt2):
    """Literal ids of GPT-2, which anchor the vocabulary from outside this repository."""
    ids = [ids.tolist() for ids in gpt2.encode_batch(["Hello world", "Hello, I'm a language model,"])]

    assert ids == [[15496, 995], [15496, 11, 314, 1101, 257, 3303, 2746, 11]]


@pytest.mark.parametrize("text", ADVERSARIAL)
def test_gpt2_equals_a_second_implementation_on_adversarial_text(gpt2, reference, text):
    """Long runs, controls, combining marks, emoji, and special tokens spelled out in the text."""
    assert gpt2.encode_batch([text])[0].tolist() == reference.encode_ordinary(text)


def test_gpt2_equals_a_second_implementation_on_the_embedded_text(gpt2, reference):
    """1 MB of real text, scene boundaries and all."""
    text = read_asset(SHAKESPEARE)

    assert gpt2.encode_batch([text])[0].tolist() == reference.encode_ordinary(text)


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXTS, max_size=4))
def test_gpt2_equals_a_second_implementation_on_any_text(gpt2, reference, texts):
    """Also in batches, where the texts must not see each other."""
    assert [ids.tolist() for ids in gpt2.encode_batch(texts)] == [reference.encode_ordinary(text) for text in texts]


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, max_size=3), st.sampled_from(["bytes", "gpt2"]))
def test_decoding_gives_the_text_back(texts, name):
    """Every text survives; ids are uint32, below the vocabulary's size, and never BOS."""
    tokenizer = TOKENIZERS[name]

    encoded = tokenizer.encode_batch(texts)

    assert [tokenizer.decode(ids) for ids in encoded] == texts
    for ids in encoded:
        assert ids.dtype == np.uint32
        assert ids.max(initial=0) < tokenizer.vocab_size
        assert tokenizer.bos_id not in ids


TOKENIZERS = {name: load_tokenizer(name) for name in ("bytes", "gpt2")}


@pytest.mark.parametrize(("name", "vocab_size", "bos_id"), [("bytes", 257, 256), ("gpt2", 50_257, 50_256)])
def test_bos_is_the_last_id_and_no_text(name, vocab_size, bos_id):
    """Decoding it gives nothing, so a sample reads as text."""
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode_batch(["ab"])[0].tolist()

    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.bos_id) == (name, vocab_size, bos_id)
    assert tokenizer.decode([bos_id, *ids, bos_id]) == "ab"


@pytest.mark.parametrize("name", ["bytes", "gpt2"])
def test_a_model_may_write_broken_utf8(name):
    """Half a character becomes U+FFFD, as a sample of a young model needs."""
    tokenizer = TOKENIZERS[name]
    half = tokenizer.encode_batch(["🎉"])[0][:1]

    assert tokenizer.decode(half) == "\ufffd"


@pytest.mark.parametrize("name", ["bytes", "gpt2"])
def test_lone_surrogates_become_replacement_characters(name):
    """JSON can hold them and UTF-8 cannot; pairs are joined."""
    tokenizer = TOKENIZERS[name]

    assert tokenizer.decode(tokenizer.encode_batch(["a\ud800b\ud83c\udf89"])[0]) == "a\ufffdb🎉"


@pytest.mark.parametrize("name", ["bytes", "gpt2"])
@pytest.mark.parametrize("token", [-1, 60_000])
def test_an_id_outside_the_vocabulary_is_refused(name, token):
    """A padded vocabulary can sample one; -1 must not read the table from its end."""
    with pytest.raises(DataError, match=f"{token:,}"):
        TOKENIZERS[name].decode([1, token])


@pytest.fixture
def saved_tokenizer(tmp_path):
    """A directory as Hugging Face tools write it: ids 0 to 2 are words, 3 and 4 special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "hello": 1, "world": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="<end>").save_pretrained(tmp_path)
    return tmp_path


def test_any_other_name_goes_to_transformers(saved_tokenizer):
    """Ids and BOS are the tokenizer's own; its special tokens inside a text are text."""
    tokenizer = load_tokenizer(str(saved_tokenizer))

    ids = [ids.tolist() for ids in tokenizer.encode_batch(["hello world", "", "hello <s> <end>"])]

    assert ids == [[1, 2], [], [1, 0, 0]]
    assert (tokenizer.vocab_size, tokenizer.bos_id) == (5, 3)
    assert tokenizer.decode([3, 1, 2, 4]) == "hello world"
    assert tokenizer.sha256 == load_tokenizer(str(saved_tokenizer)).sha256


def test_a_tokenizer_that_cannot_be_loaded_names_those_that_can(tmp_path):
    """The reason of transformers is in the message, and what works without network."""
    with pytest.raises(DataError, match=r"(?s)cannot be loaded.*`bytes` and `gpt2`"):
        load_tokenizer(str(tmp_path / "nothing-here"))


def test_a_changed_data_file_is_refused(monkeypatch):
    """A merge list with another hash would silently give other tokens."""
    monkeypatch.setitem(read_asset.__globals__["SHA256"], SHAKESPEARE, "0" * 64)

    with pytest.raises(DataError, match="was changed"):
        read_asset(SHAKESPEARE)


@pytest.mark.parametrize("name", ["bytes", "gpt2"])
def test_the_built_in_tokenizers_import_neither_torch_nor_transformers(name):
    """`amcli prep` and `amcli sample --help` would otherwise wait seconds for them."""
    script = (
        f"import sys; from automodel_cli.engine.prep.tokenizer import load_tokenizer; load_tokenizer({name!r}); "
        "print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    )

    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout

    assert printed.strip() == "set()"
