"""One piece of work at a time on a thread, and its failure for whoever asks."""

from __future__ import annotations

import threading

import pytest

from automodel_cli.engine.train.checkpoint_manager import Background


def test_a_failure_is_kept_and_raised_once():
    """Whoever waits for the work learns of it; afterwards nothing is left of it."""
    work = Background()

    work.start("fails", lambda: 1 / 0)

    assert work.wait()
    assert work.has_failed
    with pytest.raises(ZeroDivisionError):
        work.result()
    assert not work.has_failed
    work.result()


def test_the_next_work_begins_after_the_one_before(wait_until):
    """Never two at a time; a wait with a limit ends without the work."""
    work, may_end, order = Background(), threading.Event(), []
    work.start("first", lambda: (wait_until("it may end", may_end.is_set), order.append("first")))

    assert not work.wait(0.01)
    assert not work.is_over
    may_end.set()
    work.start("second", lambda: order.append("second"))
    work.result()

    assert order == ["first", "second"]
