"""Which steps validate and save."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from automodel_cli.engine.train.step_scheduler import StepScheduler

intervals = st.none() | st.integers(1, 9)


@given(st.integers(1, 40), intervals, intervals)
def test_the_last_step_always_saves_and_validates_and_multiples_of_the_interval_do(max_steps, val_every, ckpt_every):
    """No interval leaves the last step out, or has anything happen between its multiples."""
    steps = StepScheduler(max_steps, val_every, ckpt_every)

    saved = [step for step in range(1, max_steps + 1) if steps.saves(step)]
    validated = [step for step in range(1, max_steps + 1) if steps.validates(step)]

    assert saved[-1] == max_steps
    assert all(step % (ckpt_every or max_steps) == 0 for step in saved[:-1])
    assert validated[-1] == max_steps
    assert all(step % (val_every or max_steps) == 0 for step in validated[:-1])
