"""Tokenizers: equal to an independent implementation, reversible, and blind to special tokens in text."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from automodel_cli.engine.prep.json_tokenizer import byte_alphabet, read_merges
from automodel_cli.engine.prep.load_tokenizer import load_tokenizer
from automodel_cli.engine.prep.package_data import SHAKESPEARE, read_asset
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


def ids_of(tokenizer, texts: list[str]) -> list[list[int]]:
    """The ids of each text, out of one flat array."""
    encoded = tokenizer.encode_batch(pa.array(texts, pa.large_string()))
    assert encoded.offsets[0] == 0
    assert encoded.offsets[-1] == len(encoded.ids)
    return [encoded.ids[begin:end].tolist() for begin, end in pairwise(encoded.offsets.tolist())]


@pytest.fixture(scope="module")
def gpt2():
    return load_tokenizer("gpt2")


@pytest.fixture(scope="module")
def reference():
    """GPT-2 as tiktoken computes it, from the same merge list and without network."""
    byte_of = {character: byte for byte, character in byte_alphabet().items()}
    entries = [*byte_of, *(merge.replace(" ", "") for merge in read_merges())]
    ranks = {bytes(byte_of[character] for character in entry): token for token, entry in enumerate(entries)}
    return tiktoken.Encoding(
        "gpt2-from-merges", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50_256}
    )


def test_gpt2_ids_equal_those_known_from_its_release(gpt2):
    """Literal ids of GPT-2, which anchor the vocabulary from outside this repository."""
    ids = ids_of(gpt2, ["Hello world", "Hello, I'm a language model,"])

    assert ids == [[15496, 995], [15496, 11, 314, 1101, 257, 3303, 2746, 11]]


@pytest.mark.parametrize("text", ADVERSARIAL)
def test_gpt2_equals_a_second_implementation_on_adversarial_text(gpt2, reference, text):
    """Long runs, controls, combining marks, emoji, and special tokens spelled out in the text."""
    assert ids_of(gpt2, [text])[0] == gpt2.encode(text).tolist() == reference.encode_ordinary(text)


def test_gpt2_equals_a_second_implementation_on_the_embedded_text(gpt2, reference):
    """1 MB of real text, scene boundaries and all."""
    text = read_asset(SHAKESPEARE)

    assert ids_of(gpt2, [text])[0] == gpt2.encode(text).tolist() == reference.encode_ordinary(text)


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXTS, max_size=4))
def test_gpt2_equals_a_second_implementation_on_any_text(gpt2, reference, texts):
    """Also in batches, where the texts must not see each other."""
    assert ids_of(gpt2, texts) == [reference.encode_ordinary(text) for text in texts]


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, max_size=3), st.sampled_from(["bytes", "gpt2"]))
def test_decoding_gives_the_text_back(texts, name):
    """Every text survives; ids are uint32, below the vocabulary's size, and never BOS."""
    tokenizer = TOKENIZERS[name]

    encoded = tokenizer.encode_batch(pa.array(texts, pa.large_string()))

    assert encoded.ids.dtype == np.uint32
    assert encoded.ids.max(initial=0) < tokenizer.vocab_size
    assert tokenizer.bos_id not in encoded.ids
    assert [tokenizer.decode(ids) for ids in ids_of(tokenizer, texts)] == texts


TOKENIZERS = {name: load_tokenizer(name) for name in ("bytes", "gpt2")}


@pytest.mark.parametrize(("name", "vocab_size", "bos_id"), [("bytes", 257, 256), ("gpt2", 50_257, 50_256)])
def test_bos_is_the_last_id_and_no_text(name, vocab_size, bos_id):
    """Decoding it gives nothing, so a sample reads as text."""
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode("ab").tolist()

    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.bos_id) == (name, vocab_size, bos_id)
    assert tokenizer.decode([bos_id, *ids, bos_id]) == "ab"


@pytest.mark.parametrize("name", ["bytes", "gpt2"])
def test_a_model_may_write_broken_utf8(name):
    """Half a character becomes U+FFFD, as a sample of a young model needs."""
    tokenizer = TOKENIZERS[name]
    half = tokenizer.encode("🎉")[:1]

    assert tokenizer.decode(half) == "\ufffd"


@pytest.mark.parametrize("name", ["bytes", "gpt2"])
def test_lone_surrogates_become_replacement_characters(name):
    """JSON can hold them and UTF-8 cannot; pairs are joined."""
    tokenizer = TOKENIZERS[name]

    assert tokenizer.decode(tokenizer.encode("a\ud800b\ud83c\udf89")) == "a\ufffdb🎉"


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


def test_a_directory_is_read_without_transformers(saved_tokenizer):
    """Ids and BOS are the tokenizer's own; its special tokens inside a text are text."""
    tokenizer = load_tokenizer(str(saved_tokenizer))

    ids = ids_of(tokenizer, ["hello world", "", "hello <s> <end>"])

    assert ids == [[1, 2], [], [1, 0, 0]]
    assert (tokenizer.vocab_size, tokenizer.bos_id) == (5, 3)
    assert tokenizer.decode([3, 1, 2, 4]) == "hello world"
    assert tokenizer.sha256 == load_tokenizer(str(saved_tokenizer)).sha256


def test_a_tokenizer_without_a_json_is_loaded_by_transformers(tmp_path):
    """One that transformers converts, and one that is Python code only."""
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\nworld\n")
    (tmp_path / "words" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')

    words, code = (load_tokenizer(str(tmp_path / name)) for name in ("words", "code"))

    assert ids_of(words, ["Hello world", "", "world"]) == [[5, 6], [], [6]]
    assert (words.bos_id, words.engine.split()[0]) == (None, "tokenizers")
    assert ids_of(code, ["ab", "", "\u00e9</s>"])[:2] == [[100, 101], []]
    assert code.eos_id not in ids_of(code, ["\u00e9</s>"])[0]
    assert code.decode(ids_of(code, ["\u00e9</s>"])[0]) == "\u00e9</s>"
    assert (code.bos_id, code.engine.split()[0], code.json) == (None, "transformers", None)
    assert code.token_id("</s>") == code.eos_id


def test_a_tokenizer_that_cannot_be_loaded_names_those_that_can(tmp_path):
    """The reason is in the message, and what works without network."""
    with pytest.raises(DataError, match=r"(?s)cannot be loaded.*`bytes` and `gpt2`"):
        load_tokenizer(str(tmp_path / "nothing-here"))


@pytest.mark.parametrize("name", ["gtp2", "GPT-2", "gpt3", "byte"])
def test_a_mistyped_built_in_tokenizer_is_named_without_asking_anybody(monkeypatch, name):
    """At once, whether there is a network or not."""
    monkeypatch.setattr("automodel_cli.engine.prep.load_tokenizer._from_hub", None)

    with pytest.raises(DataError, match=rf"(?s)there is no tokenizer '{name}'.*did you mean (gpt2|bytes)\?"):
        load_tokenizer(name)


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch, tmp_path):
    """The client's own retries take a minute for each file; what was downloaded before is found without it."""
    import huggingface_hub

    asked = []

    def unreachable(self, name, timeout):
        asked.append(name)
        raise ConnectionError("no route to host")

    def downloaded(name, file="", *, local_files_only):
        assert local_files_only
        raise huggingface_hub.errors.LocalEntryNotFoundError("it is not there")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", downloaded)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", downloaded)

    with pytest.raises(DataError, match=r"(?s)hub cannot be reached: no route to host.*`bytes` and `gpt2`"):
        load_tokenizer("owner/name")

    assert asked == ["owner/name"]


def test_what_was_downloaded_before_is_loaded_without_network(monkeypatch, saved_tokenizer):
    """The same tokenizer as from its directory."""
    import huggingface_hub

    def unreachable(self, name, timeout):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda name, file, local_files_only: saved_tokenizer / file)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, local_files_only: str(saved_tokenizer))

    assert load_tokenizer("owner/name").sha256 == load_tokenizer(str(saved_tokenizer)).sha256


def test_every_kind_of_model_names_its_unknown_token(tmp_path):
    """Also Unigram, which keeps a number; a vocabulary of bytes has none."""
    from tokenizers import Tokenizer, models

    kinds = {
        "word": models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"),
        "piece": models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]"),
        "unigram": models.Unigram([("a", 0.0), ("<unk>", -1.0)], 1, False),
        "bpe": models.BPE({"a": 0, "<unk>": 1}, [], unk_token="<unk>"),
        "none": models.BPE({"a": 0}, []),
    }
    for kind, model in kinds.items():
        (tmp_path / kind).mkdir()
        Tokenizer(model).save(str(tmp_path / kind / "tokenizer.json"))

    found = {kind: load_tokenizer(str(tmp_path / kind)).unk_id for kind in kinds}

    assert found == {"word": 1, "piece": 1, "unigram": 1, "bpe": 1, "none": None}
    assert load_tokenizer("bytes").unk_id is load_tokenizer("gpt2").unk_id is None


def test_a_changed_data_file_is_refused(monkeypatch):
    """A merge list with another hash would silently give other tokens."""
    monkeypatch.setitem(read_asset.__globals__["SHA256"], SHAKESPEARE, "0" * 64)

    with pytest.raises(DataError, match="was changed"):
        read_asset(SHAKESPEARE)


@pytest.mark.parametrize("name", ["bytes", "gpt2"])
def test_the_built_in_tokenizers_import_neither_torch_nor_transformers(name):
    """`amcli prep` and `amcli sample --help` would otherwise wait seconds for them."""
    script = (
        f"import sys; from automodel_cli.engine.prep.load_tokenizer import load_tokenizer; load_tokenizer({name!r}); "
        "print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    )

    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout

    assert printed.strip() == "set()"
