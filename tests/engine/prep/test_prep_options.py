"""Numbers of tokens as users write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automodel_cli.engine.prep.prep_options import parse_token_count
from automodel_cli.errors import UsageError


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("500M", 500_000_000),
        ("2B", 2_000_000_000),
        ("1.5e9", 1_500_000_000),
        ("1.1e9", 1_100_000_000),
        ("2_000_000", 2_000_000),
        ("1e6", 1_000_000),
        ("0.3k", 300),
        ("1t", 10**12),
        (" 7 ", 7),
        ("0", 0),
    ],
)
def test_the_usual_ways_to_write_a_number_are_understood(text, count):
    """Exactly, also where a binary fraction would be off by one."""
    assert parse_token_count(text) == count


@given(st.integers(0, 10**15))
def test_plain_numbers_mean_themselves(count):
    """With and without separators."""
    assert parse_token_count(str(count)) == parse_token_count(f"{count:_}") == count


@pytest.mark.parametrize("text", ["", "lots", "-5", "1,000", "5 M", "1e", "M", "1__0", "0x10", "1e-3", "nan", "\u0661"])
def test_anything_else_is_refused_with_examples(text):
    """A typo never becomes a budget."""
    with pytest.raises(UsageError, match=r"500M, 2B, 1\.5e9 or 2_000_000"):
        parse_token_count(text)


def test_a_part_of_a_token_is_refused():
    """1.2345K is 1,234.5 tokens."""
    with pytest.raises(UsageError, match="no whole number"):
        parse_token_count("1.2345K")
