"""The rule that holds documents out keeps the share at every moment, not only at the end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from automodel_cli.engine.prep.hold_out import HoldOut


@given(share=st.floats(0.01, 0.5), document_tokens=st.integers(1, 1000), num_documents=st.integers(1, 200))
def test_the_share_is_kept_to_half_a_document_all_along(share, document_tokens, num_documents):
    """So the first documents are not held out before there is anything to hold out from."""
    rule = HoldOut(share, val_tokens=None, max_tokens=None)
    held_out = trained_on = 0

    for number in range(num_documents):
        if rule.takes(number, held_out, trained_on, None):
            held_out += document_tokens
        else:
            trained_on += document_tokens

        assert abs(held_out - share * (held_out + trained_on)) <= document_tokens / 2 + 1e-6


@given(val_tokens=st.integers(1, 500), max_tokens=st.integers(1, 5000), corpus_tokens=st.integers(1, 5000))
def test_a_budget_larger_than_the_corpus_does_not_thin_out_validation(val_tokens, max_tokens, corpus_tokens):
    """Documents of one token: validation gets all it asked for whenever the corpus has room for it beside training."""
    rule = HoldOut(0.05, val_tokens, max_tokens)
    held_out = trained_on = 0

    for number in range(corpus_tokens):
        if rule.is_satisfied(held_out, trained_on):
            break
        if rule.takes(number, held_out, trained_on, corpus_tokens):
            held_out += 1
        elif trained_on < max_tokens:
            trained_on += 1

    assert held_out <= val_tokens
    if corpus_tokens >= 2 * val_tokens + 2:
        assert held_out >= val_tokens - 1
