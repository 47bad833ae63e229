"""Documents are framed one by one: BOS, EOS, length limit, and a range check before the cast."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from automodel_cli.engine.prep.framing import Framing, join
from automodel_cli.engine.prep.tokenizer import Encoded
from automodel_cli.errors import DataError

BOS, EOS = 9, 8
TEXTS = st.lists(st.lists(st.integers(0, 7), max_size=12), max_size=8)


def encoded(texts: list[list[int]]) -> Encoded:
    return Encoded(
        np.array([token for text in texts for token in text], dtype=np.uint32),
        np.cumsum([0, *map(len, texts)], dtype=np.int64),
    )


def framing(**changed) -> Framing:
    return Framing(**{"dtype": np.dtype("<u2"), "vocab_size": 10, "bos_id": BOS, **changed})


def framed(texts: list[list[int]], **changed):
    return framing(**changed).frame(encoded(texts), np.full(len(texts), 5, dtype=np.int64))


def listed(documents) -> list[list[int]]:
    begins, ends = documents.offsets[:-1].tolist(), documents.offsets[1:].tolist()
    return [documents.tokens[begin:end].tolist() for begin, end in zip(begins, ends, strict=True)]


@given(texts=TEXTS, bos=st.booleans(), eos=st.booleans())
def test_every_document_gets_its_boundaries(texts, bos, eos):
    """Each alone, a text without tokens too."""
    documents = framed(texts, bos_id=BOS if bos else None, eos_id=EOS if eos else None)

    assert listed(documents) == [[BOS] * bos + text + [EOS] * eos for text in texts]
    assert documents.tokens.dtype == np.uint16
    assert not documents.over_length.any()


@given(texts=TEXTS, eos=st.booleans(), max_length=st.integers(3, 14))
def test_cut_documents_keep_their_beginning(texts, eos, max_length):
    """None is longer than the limit, boundary tokens counted; those that were are marked."""
    room = max_length - 1 - eos

    documents = framed(texts, eos_id=EOS if eos else None, max_length=max_length)

    assert listed(documents) == [[BOS] + text[:room] + [EOS] * eos for text in texts]
    assert documents.over_length.tolist() == [len(text) > room for text in texts]
    assert documents.text_bytes.tolist() == [5] * len(texts)


@given(texts=TEXTS, eos=st.booleans(), max_length=st.integers(3, 14))
def test_split_documents_lose_nothing(texts, eos, max_length):
    """Every piece is a document of its own; the bytes and the mark are with the first."""
    room = max_length - 1 - eos
    pieces = [[text[at : at + room] for at in range(0, max(len(text), 1), room)] for text in texts]

    documents = framed(texts, eos_id=EOS if eos else None, max_length=max_length, split=True)

    assert listed(documents) == [[BOS] + piece + [EOS] * eos for text in pieces for piece in text]
    assert documents.over_length.tolist() == [
        number == 0 and len(text) > 1 for text in pieces for number in range(len(text))
    ]
    assert documents.text_bytes.tolist() == [5 * (number == 0) for text in pieces for number in range(len(text))]


@given(texts=TEXTS, parts=st.integers(1, 4), max_length=st.one_of(st.none(), st.integers(3, 14)), split=st.booleans())
def test_documents_do_not_depend_on_their_batch(texts, parts, max_length, split):
    """Framed together or in several batches that are joined: the same arrays."""
    settings = {"max_length": max_length, "split": split}
    size = -(-max(len(texts), 1) // parts)

    joined = join([framed(texts[at : at + size], **settings) for at in range(0, max(len(texts), 1), size)])

    whole = framed(texts, **settings)
    for name in ("tokens", "offsets", "text_bytes", "over_length"):
        assert np.array_equal(getattr(joined, name), getattr(whole, name))


@pytest.mark.parametrize("token", [10, 65_536, 2**32 - 1])
def test_an_id_outside_the_vocabulary_is_refused_before_the_cast(token):
    """65,536 as uint16 would be 0: another token, silently."""
    with pytest.raises(DataError, match=f"{token:,}.*10 entries"):
        framed([[1, token]])
