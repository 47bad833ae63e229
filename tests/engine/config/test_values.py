"""Lengths in steps and in tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.values import DurationError, in_steps, tokens_per_step


@given(st.integers(0, 10**12), st.integers(1, 10**7))
def test_the_steps_are_the_first_in_which_the_tokens_are_seen(tokens, per_step):
    """Enough steps, and not one too many."""
    steps = in_steps(f"{tokens} tokens", per_step)

    assert (steps - 1) * per_step < tokens <= steps * per_step


@pytest.mark.parametrize(
    ("text", "steps"), [("10M tokens", 10_000), ("1.5k tokens", 2), ("2e6 tokens", 2000), ("300 steps", 300)]
)
def test_units_are_those_of_the_field(text, steps):
    """k, M, B and T, and floats where they are whole."""
    assert in_steps(text, 1000) == steps


@pytest.mark.parametrize("text", ["", "10M", "ten tokens", "10 Mtokens each", "-5 tokens", "1.00001k tokens"])
def test_what_is_no_length_is_refused(text):
    """Rather than read as some other number."""
    with pytest.raises(DurationError):
        in_steps(text, 1000)


@pytest.mark.parametrize(
    ("dataset", "extra", "expected"),
    [
        ({"seq_len": 128}, {}, 2048),
        ({"datasets": [{"dataset": {"seq_len": 64}}]}, {}, 1024),
        ({"seq_len": 128}, {"packed_sequence": {"packed_sequence_size": 256}}, 4096),
        ({"length": 128}, {}, None),
        (None, {}, None),
    ],
)
def test_the_tokens_of_a_step_are_read_from_the_configuration(dataset, extra, expected):
    """Also inside a blend; not guessed where no section says so."""
    config = Config({"step_scheduler": {"global_batch_size": 16}, "dataset": dataset, **extra})

    assert tokens_per_step(config) == expected
