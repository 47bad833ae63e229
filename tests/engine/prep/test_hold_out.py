"""The rule that holds documents out keeps the share at every moment, not only at the end."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from automodel_cli.engine.prep.hold_out import HoldOut, Seen

LENGTHS = st.lists(st.integers(0, 60), min_size=1, max_size=700)


def run(rule: HoldOut, lengths: list[int], steps: list[int], corpus_tokens: float | None = None) -> list[bool]:
    """The choices when the documents come in groups of these sizes, over and over."""
    seen, chosen, at = Seen(), [], 0
    for step in steps * len(lengths):
        group = np.array(lengths[at : at + step], dtype=np.int64)
        taken = rule.choose(group, seen, corpus_tokens)
        used = group[: len(taken)]
        seen = Seen(
            seen.num_documents + len(used),
            seen.held_out + int(used[taken].sum()),
            seen.trained_on + int(used[~taken].sum()),
        )
        chosen += taken.tolist()
        at += step
        if len(taken) < step:
            break
    return chosen


@given(
    lengths=LENGTHS,
    steps=st.lists(st.integers(1, 300), min_size=1, max_size=4),
    share=st.floats(0.001, 0.5),
    val_tokens=st.one_of(st.none(), st.integers(0, 2000)),
    max_tokens=st.one_of(st.none(), st.integers(1, 9000)),
    corpus_tokens=st.one_of(st.none(), st.floats(1, 20_000)),
)
def test_the_choice_does_not_depend_on_how_documents_are_grouped(
    lengths, steps, share, val_tokens, max_tokens, corpus_tokens
):
    """Chosen one by one or by hundreds, the same documents are held out, and the same one is the last."""
    rule = HoldOut(share, val_tokens, max_tokens)

    grouped = run(rule, lengths, steps, corpus_tokens)

    assert grouped == run(rule, lengths, [1], corpus_tokens)


@given(share=st.floats(0.01, 0.5), document_tokens=st.integers(1, 1000), num_documents=st.integers(1, 200))
def test_the_share_is_kept_to_half_a_document_all_along(share, document_tokens, num_documents):
    """So the first documents are not held out before there is anything to hold out from."""
    rule = HoldOut(share, val_tokens=None, max_tokens=None)

    chosen = run(rule, [document_tokens] * num_documents, [num_documents])

    held_out = np.cumsum(chosen) * document_tokens
    in_all = np.arange(1, num_documents + 1) * document_tokens
    assert len(chosen) == num_documents
    assert np.abs(held_out - share * in_all).max() <= document_tokens / 2 + 1e-6


@given(val_tokens=st.integers(1, 500), max_tokens=st.integers(1, 5000), corpus_tokens=st.integers(1, 5000))
def test_a_budget_larger_than_the_corpus_does_not_thin_out_validation(val_tokens, max_tokens, corpus_tokens):
    """Documents of one token: validation gets all it asked for whenever the corpus has room for it beside training."""
    rule = HoldOut(0.05, val_tokens, max_tokens)

    held_out = sum(run(rule, [1] * corpus_tokens, [corpus_tokens], corpus_tokens))

    assert held_out <= val_tokens
    if corpus_tokens >= 2 * val_tokens + 2:
        assert held_out >= val_tokens - 1


@given(lengths=LENGTHS, val_tokens=st.integers(1, 300), max_tokens=st.integers(1, 900))
def test_no_document_is_asked_for_behind_the_last_that_is_needed(lengths, val_tokens, max_tokens):
    """The choices end with the document that fills what was not full yet, or with the corpus."""
    chosen = run(HoldOut(0.05, val_tokens, max_tokens), lengths, [len(lengths)])

    used = np.array(lengths[: len(chosen)])
    taken = np.array(chosen, dtype=bool)
    is_full = used[taken].sum() >= val_tokens and used[~taken].sum() >= max_tokens
    without_last = used[:-1][taken[:-1]].sum() < val_tokens or used[:-1][~taken[:-1]].sum() < max_tokens
    assert without_last
    assert is_full or len(chosen) == len(lengths)
