"""Schedules: the shape of the curve, for any lengths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automodel_cli.engine.optim.lr_schedule import LRSchedule
from automodel_cli.errors import ConfigError

schedules = st.builds(
    lambda style, warmup, length, low: LRSchedule(1.0, low, style, warmup, warmup + length),
    st.sampled_from(["cosine", "linear", "constant"]),
    st.integers(0, 50),
    st.integers(1, 200),
    st.floats(0, 1),
)


@given(schedules)
def test_the_curve_rises_to_the_base_rate_then_never_rises_again(schedule):
    """Warm-up is strictly positive and monotone; afterwards the rate falls, and stays within its bounds."""
    end = schedule.decay_steps
    rates = [schedule.lr(step) for step in range(end + 20)]
    up, down = rates[: schedule.warmup_steps], rates[schedule.warmup_steps :]

    assert all(rate > 0 for rate in up)
    assert up == sorted(up)
    assert down == sorted(down, reverse=True)
    assert down[0] == 1.0
    floor = 1.0 if schedule.style == "constant" else schedule.min_lr
    assert all(rate == pytest.approx(floor, abs=1e-12) for rate in rates[end:])


def test_cosine_is_half_way_in_the_middle():
    """A value anyone can check by hand."""
    schedule = LRSchedule(3e-4, 1e-4, "cosine", 10, 110)

    assert schedule.lr(0) == pytest.approx(3e-5)
    assert schedule.lr(60) == pytest.approx(2e-4)
    assert schedule.lr(110) == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"style": "cosin"}, "cosine, linear, constant"),
        ({"min_lr": 2.0}, "is 2.0"),
        ({"min_lr": -1.0}, "is -1.0"),
        ({"warmup_steps": -1}, "-1 and 1 steps"),
    ],
)
def test_impossible_schedules_are_refused(arguments, words):
    """With the rule."""
    with pytest.raises(ConfigError, match=words):
        LRSchedule(1.0, **arguments)
