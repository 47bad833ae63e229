"""The `Args:` of docstrings as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automodel_cli.engine.config.arguments import argument_meanings, summary

words = st.text("abc d", min_size=1).map(str.strip).filter(bool)


@given(st.dictionaries(st.text("xyz", min_size=1), words, min_size=1), st.sampled_from(["", " (int, optional)"]))
def test_every_argument_is_found_with_its_text(arguments, annotation):
    """For any names and texts, with and without types in parentheses, and nothing after the section."""
    lines = "".join(f"            {name}{annotation}: {text}\n" for name, text in arguments.items())

    found = argument_meanings(f"Does it.\n\n        Args:\n{lines}\n        Returns:\n            other: no argument\n")

    assert found == {name: " ".join(text.split(" ")) for name, text in arguments.items()}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, {}),
        ("Only a summary.", {}),
        ("x.\n\nArguments:\n    a: one\n", {"a": "one"}),
        ("x.\n\nArgs:\n    a, b: both\n", {"a": "both", "b": "both"}),
        ("x.\n\nArgs:\n    **kwargs: more\n", {"kwargs": "more"}),
        ("x.\n\nArgs:\n    a (`int`, *optional*, defaults to 3):\n        below it\n", {"a": "below it"}),
        ("x.\n\nArgs:\n    a: one\n\n    b: two\n", {"a": "one", "b": "two"}),
        ("x.\n\nArgs:\n", {}),
        ("x.\n\nArgs:\n    prose without any colon\n", {}),
    ],
)
def test_the_styles_of_the_field_are_read(text, found):
    """Google, torch and transformers; without a section, nothing."""
    assert argument_meanings(text) == found


@pytest.mark.parametrize(
    ("text", "first"),
    [("One\n    line.\n\nMore.", "One line."), ("```python\n>>> x\n```", None), (">>> 1\n1", None), ("", None)],
)
def test_the_summary_is_prose(text, first):
    """An example is not what a thing is for."""
    assert summary(text) == first
