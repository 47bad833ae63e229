"""Copies of the inputs are told from labels of the next token, and from data that fit both."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from automodel_cli.engine.data.collate import place_of_labels, shifted_labels
from automodel_cli.engine.protocols import IGNORED_LABEL


def tokens(shape=(4, 33), vocab_size=50, seed=0):
    return np.random.default_rng(seed).integers(0, vocab_size, shape)


@given(st.integers(2, 300), st.integers(0, 99), st.floats(0, 0.8))
def test_copies_and_next_tokens_are_told_apart_with_some_labels_masked(vocab_size, seed, masked):
    """Of random tokens of any vocabulary, with any part of the labels masked."""
    window = tokens((4, 65), vocab_size, seed)
    mask = np.random.default_rng(seed + 1).random((4, 64)) < masked

    copies = np.where(mask, IGNORED_LABEL, window[:, :-1])
    following = np.where(mask, IGNORED_LABEL, window[:, 1:])

    assert place_of_labels(window[:, :-1], copies).is_shifted is False
    assert place_of_labels(window[:, :-1], following).is_shifted is True


@pytest.mark.parametrize(
    ("input_ids", "labels"),
    [
        (np.full((4, 64), 7), np.full((4, 64), 7)),
        (np.arange(4)[:, None].repeat(64, 1), np.arange(4)[:, None].repeat(64, 1)),
        (tokens((4, 64)), np.full((4, 64), IGNORED_LABEL)),
        (tokens((4, 1)), tokens((4, 1))),
    ],
    ids=["one token", "one token a sample", "all masked", "one place"],
)
def test_a_batch_that_fits_both_ways_tells_nothing(input_ids, labels):
    """A run of equal tokens is the same shifted and not; without labels, or with one place, there is nothing to see."""
    assert place_of_labels(input_ids, labels) is None


def test_few_labels_that_agree_by_chance_tell_nothing():
    """One label of 2 values in each of 4 samples, at a place in the middle, is what the input is once in 16 batches."""
    input_ids = np.array([[0, 1, 0, 1, 0]] * 4)
    labels = np.full_like(input_ids, IGNORED_LABEL)
    labels[:, 1] = input_ids[:, 1]

    assert place_of_labels(input_ids, labels) is None


def test_labels_of_another_kind_are_neither():
    """Tags, or tokens two places on: nothing is refused."""
    input_ids = tokens()

    assert place_of_labels(input_ids, (input_ids * 7 + 3) % 50).is_shifted is None


def test_shifted_copies_are_what_a_window_gives():
    """The last place has no next token."""
    window = tokens((2, 9))

    moved = shifted_labels({"labels": window})

    assert moved[:, :-1].tolist() == window[:, 1:].tolist()
    assert moved[:, -1].tolist() == [IGNORED_LABEL] * 2


@pytest.mark.parametrize(
    "borders",
    [
        {"document_ids": np.array([[0, 0, 0, 1, 1, 2]])},
        {"position_ids": np.array([[0, 1, 2, 0, 1, 0]])},
    ],
    ids=["document_ids", "position_ids"],
)
def test_no_document_predicts_the_first_token_of_the_next(borders):
    """A label that would cross a border is masked; one that was masked before stays so."""
    labels = np.array([[1, IGNORED_LABEL, 3, 4, 5, 6]])

    moved = shifted_labels({"labels": labels, **borders})

    assert moved.tolist() == [[-100, 3, -100, 5, -100, -100]]
