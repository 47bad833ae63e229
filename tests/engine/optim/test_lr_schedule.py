"""Schedules: the shape of the curve for any lengths, and that the library functions of the field agree."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import optimization

from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.load import load_config
from automodel_cli.engine.config.sections import DECAY_STYLES, WSD_STYLES
from automodel_cli.engine.optim.lr_schedule import LRSchedule, change_after, schedule_of
from automodel_cli.errors import ConfigError

schedules = st.builds(
    lambda style, warmup, length, low, decay, shape: LRSchedule(
        1.0, low, style, warmup, warmup + length, min(decay, length), shape
    ),
    st.sampled_from(DECAY_STYLES),
    st.integers(0, 50),
    st.integers(1, 200),
    st.floats(0, 1),
    st.integers(1, 200),
    st.sampled_from(WSD_STYLES),
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
    assert all(rate >= schedule.min_lr - 1e-12 for rate in down)
    if schedule.style in ("cosine", "linear", "WSD"):
        assert all(rate == pytest.approx(schedule.min_lr, abs=1e-12) for rate in rates[end:])
    if schedule.style == "constant":
        assert set(down) == {1.0}


@given(schedules, st.integers(0, 300))
def test_a_longer_wsd_run_is_the_same_until_the_first_decay_begins(schedule, more):
    """Which is what the shape is for: a run can be extended from its stable phase."""
    wsd = LRSchedule(1.0, 0.0, "WSD", schedule.warmup_steps, schedule.decay_steps, schedule.wsd_decay_steps)
    longer = LRSchedule(1.0, 0.0, "WSD", wsd.warmup_steps, wsd.decay_steps + more, wsd.wsd_decay_steps)

    assert all(wsd.lr(step) == longer.lr(step) for step in range(wsd.decay_begin + 1))


def test_cosine_is_half_way_in_the_middle():
    """A value anyone can check by hand."""
    schedule = LRSchedule(3e-4, 1e-4, "cosine", 10, 110)

    assert schedule.lr(0) == pytest.approx(3e-5)
    assert schedule.lr(60) == pytest.approx(2e-4)
    assert schedule.lr(110) == pytest.approx(1e-4)


def rates_of(make, num_steps, **arguments):
    """The rates of the updates of a scheduler of transformers or torch."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer, **arguments)
    rates = []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize(
    ("ours", "make", "arguments"),
    [
        ({"style": "constant"}, optimization.get_constant_schedule_with_warmup, {}),
        ({"style": "linear"}, optimization.get_linear_schedule_with_warmup, {"num_training_steps": 60}),
        ({"style": "cosine"}, optimization.get_cosine_schedule_with_warmup, {"num_training_steps": 60}),
        ({"style": "inverse-square-root"}, optimization.get_inverse_sqrt_schedule, {}),
        *(
            (
                {"style": "WSD", "wsd_decay_steps": 20, "wsd_decay_style": shape, "min_lr": 0.1},
                optimization.get_wsd_schedule,
                {"num_training_steps": 60, "num_decay_steps": 20, "min_lr_ratio": 0.1, "decay_type": shape},
            )
            for shape in ("linear", "cosine", "1-sqrt")
        ),
    ],
    ids=["constant", "linear", "cosine", "inverse-square-root", "WSD linear", "WSD cosine", "WSD 1-sqrt"],
)
def test_after_the_warm_up_the_rates_are_those_of_transformers(ours, make, arguments, warmup):
    """At every step; only the warm-up differs, which here begins above zero, one step ahead."""
    schedule = LRSchedule(1.0, warmup_steps=warmup, decay_steps=60, **ours)

    theirs = rates_of(make, 60, num_warmup_steps=warmup, **arguments)

    assert [schedule.lr(step) for step in range(warmup, 60)] == pytest.approx(theirs[warmup:], abs=1e-12)
    if ours["style"] != "WSD":  # which warms up from the lowest rate there
        assert [schedule.lr(step) for step in range(warmup - 1)] == pytest.approx(theirs[1:warmup])


def test_cosine_is_that_of_torch():
    """With a lowest rate; torch's closed form is a recursion, so to rounding."""
    schedule = LRSchedule(1.0, 0.25, "cosine", 0, 50)

    theirs = rates_of(torch.optim.lr_scheduler.CosineAnnealingLR, 50, T_max=50, eta_min=0.25)

    assert [schedule.lr(step) for step in range(50)] == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"style": "cosin"}, "cosine, linear, constant"),
        ({"wsd_decay_style": "sqrt"}, "1-sqrt"),
        ({"min_lr": 2.0}, "is 2.0"),
        ({"min_lr": -1.0}, "is -1.0"),
        ({"warmup_steps": -1}, "-1 and 1 steps"),
    ],
)
def test_impossible_schedules_are_refused(arguments, words):
    """With the rule."""
    with pytest.raises(ConfigError, match=words):
        LRSchedule(1.0, **arguments)


def settings_of(*assignments):
    config = load_config(None, assignments)
    return config, checked(config)


def test_lengths_in_tokens_become_steps(named_shards):
    """16 samples of 128 tokens a step: 204,800 tokens are 100 steps, and one token more is a step more."""
    schedule = schedule_of(
        *settings_of(
            "lr_scheduler.lr_decay_style=WSD",
            "lr_scheduler.lr_warmup_steps=20_480 tokens",
            "lr_scheduler.lr_decay_steps=204.8k tokens",
            "lr_scheduler.lr_wsd_decay_steps=20481 tokens",
        )
    )

    assert (schedule.warmup_steps, schedule.decay_steps, schedule.wsd_decay_steps) == (10, 100, 11)


def test_the_defaults_end_the_decay_with_the_run(named_shards):
    """And WSD decays over the last fifth."""
    schedule = schedule_of(*settings_of("lr_scheduler.lr_decay_style=WSD", "lr_scheduler.lr_decay_steps=null"))

    assert (schedule.decay_steps, schedule.decay_begin) == (600, 480)


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["dataset.seq_len=null", "lr_scheduler.lr_warmup_steps=1M tokens"], "section `dataset` has no seq_len"),
        (
            ["lr_scheduler.lr_decay_style=WSD", "lr_scheduler.lr_wsd_decay_steps=2M tokens"],
            r"2M tokens \(977 steps\), but between .* 600 - 40 = 560 steps",
        ),
    ],
)
def test_lengths_that_do_not_fit_are_refused_before_anything_runs(named_shards, assignments, words):
    """By the checks of the configuration, with the numbers."""
    with pytest.raises(ConfigError, match=words):
        settings_of(*assignments)


def test_what_a_longer_run_changes_is_said_once():
    """The first rate that departs, and the last."""
    old, new = LRSchedule(1.0, style="linear", decay_steps=100), LRSchedule(1.0, style="linear", decay_steps=200)

    assert change_after(50, old, new, 200) == (
        "the learning rate from step 51 on: 0.75 instead of 0.5 there, 0.005 at the last step"
    )
    assert change_after(50, old, old, 200) is None
