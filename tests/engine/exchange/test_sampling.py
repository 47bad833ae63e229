"""Sampling follows the model's distribution within its options, and repeats itself for equal seeds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from automodel_cli.engine.exchange.sampling import generate


class Chain(nn.Module):
    """Always wants the token after the last, and keeps the longest input it has seen."""

    def __init__(self, vocab_size=7):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.vocab_size = vocab_size
        self.longest = 0

    def forward(self, ids):
        self.longest = max(self.longest, ids.shape[1])
        return nn.functional.one_hot((ids + 1) % self.vocab_size, self.vocab_size) * 5.0


def draw(**options):
    defaults = {"max_new_tokens": 12, "window": 4, "temperature": 1.0, "top_k": None}
    model = Chain()
    return model, list(generate(model, [0], **{**defaults, **options}))


def test_temperature_zero_takes_the_likeliest():
    """The chain counts up, whatever the seed."""
    _, ids = draw(temperature=0.0, seed=5)

    assert ids == [i % 7 for i in range(1, 13)]


def test_top_1_is_the_likeliest_too():
    """Only one candidate is left."""
    assert draw(top_k=1)[1] == draw(temperature=0.0)[1]


def test_the_stop_token_ends_the_text_and_is_not_part_of_it():
    """The id that begins documents also ends them."""
    assert draw(temperature=0.0, stop_id=4)[1] == [1, 2, 3]


def test_the_model_never_sees_more_than_its_window():
    """Older tokens are forgotten instead of overrunning the positions."""
    model, ids = draw()

    assert len(ids) == 12
    assert model.longest == 4


def test_equal_seeds_draw_equal_text():
    """And another seed another one; torch's own generator is left alone."""
    state = torch.get_rng_state()

    assert draw(seed=1, max_new_tokens=60)[1] == draw(seed=1, max_new_tokens=60)[1]
    assert draw(seed=1, max_new_tokens=60)[1] != draw(seed=2, max_new_tokens=60)[1]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_top_k_draws_from_no_more_than_k(top_k):
    """Flat logits would reach all tokens; with top_k only the k likeliest are ever drawn."""

    class Slope(Chain):
        def forward(self, ids):
            return torch.arange(7.0).expand(1, ids.shape[1], 7) * 0.01

    seen = set(generate(Slope(), [0], max_new_tokens=300, window=4, temperature=1.0, top_k=top_k))

    assert seen == set(range(7 - top_k, 7))
