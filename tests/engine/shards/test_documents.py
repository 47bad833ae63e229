"""Documents are found where they begin, across shards, in every format."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automodel_cli.engine.shards.directory import SplitDocuments, open_directory, split_of
from automodel_cli.engine.shards.formats import FORMATS
from automodel_cli.engine.shards.survey import length_histogram, survey
from automodel_cli.errors import UsageError


@settings(max_examples=40, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(0, 255), max_size=30), min_size=1, max_size=12),
    shard_tokens=st.integers(1, 40),
    form=st.sampled_from(sorted(FORMATS)),
)
def test_every_document_comes_back_whole(prepare_documents, tmp_path_factory, documents, shard_tokens, form):
    """However short the shards are: by number, and by the place of any of its tokens."""
    directory = prepare_documents(
        tmp_path_factory.mktemp("d") / "x", {"train": documents}, shard_tokens=shard_tokens, form=FORMATS[form]
    )

    found = SplitDocuments(open_directory(directory).splits["train"], 256)

    assert found.num_documents == len(documents)
    assert found.lengths.tolist() == [len(document) + 1 for document in documents]
    begin = 0
    for number, document in enumerate(documents):
        assert found.document(number).tokens.tolist() == [256, *document]
        assert found.document_at(begin).number == found.document_at(begin + len(document)).number == number
        begin += len(document) + 1


def test_a_document_that_does_not_exist_is_refused(prepared):
    """The number of documents and of tokens is said."""
    found = SplitDocuments(open_directory(prepared).splits["val"], 256)

    with pytest.raises(UsageError, match="no document 5: the split has 5"):
        found.document(5)
    with pytest.raises(UsageError, match="no token 100,000"):
        found.document_at(100_000)


def test_the_token_before_the_first_document_belongs_to_none(prepared):
    """A shard of others may begin in the middle of a document."""
    found = SplitDocuments([prepared / "train_000001.bin"], 256)
    begin = int(found.starts[0])

    with pytest.raises(UsageError, match="--bos-token"):
        found.document_at(begin - 1)
    assert found.document_at(begin).number == 0


def test_an_unknown_split_is_refused_with_those_that_exist(prepared):
    """The help names them."""
    with pytest.raises(UsageError) as caught:
        open_directory(prepared).split("test")

    assert caught.value.help == "its splits are train, val"
    assert open_directory(prepared).split(None) == "train"


def test_without_manifest_names_make_the_splits(prepared):
    """What precedes the number; the index tells the BOS token."""
    (prepared / "manifest.json").unlink()
    for number, file in enumerate(sorted(prepared.glob("val_*.bin"))):
        file.rename(prepared / f"fineweb-val-{number}.bin")

    opened = open_directory(prepared)

    assert list(opened.splits) == ["fineweb-val", "train"]
    assert split_of(prepared / "fineweb-val-0.bin") == "fineweb-val"
    assert survey(opened, None).splits["train"].num_documents == 30
    assert survey(opened, None).splits["fineweb-val"].num_documents is None


def test_a_survey_counts_tokens_and_lengths(prepare_documents, tmp_path):
    """Against a count by hand."""
    directory = prepare_documents(tmp_path / "x", {"train": [[7] * 5, [8], [7, 7]]})

    found = survey(open_directory(directory), None).splits["train"]

    assert [(token.token_id, token.count) for token in found.top_tokens] == [(7, 7), (256, 3), (8, 1)]
    assert [(b.from_tokens, b.to_tokens, b.num_documents) for b in found.lengths] == [(2, 3, 2), (4, 7, 1)]
    assert (found.num_tokens, found.counted_tokens, found.num_documents) == (11, 11, 3)
    assert found.median_document_tokens == 3.0


@given(st.lists(st.integers(1, 2**40), min_size=1, max_size=50))
def test_every_length_is_in_exactly_one_bin(lengths):
    """Also powers of two and one less, where a logarithm would err."""
    bins = length_histogram(np.array(lengths))

    for found in bins:
        inside = [length for length in lengths if found.from_tokens <= length <= found.to_tokens]
        assert len(inside) == found.num_documents
    assert sum(found.num_documents for found in bins) == len(lengths)
