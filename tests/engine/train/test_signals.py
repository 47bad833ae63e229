"""Stop signals are requests the first time, and final the second."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from automodel_cli.engine.train.signals import StoppedWaitingError, StopSignal, save_requests_ignored

TWO_SIGNALS = """
import os, signal, time
from automodel_cli.engine.train.signals import StopSignal
with StopSignal() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.requested
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
"""


def test_the_first_signal_is_remembered_and_the_handlers_come_back():
    """The block runs on after the signal; afterwards the previous handlers stand."""
    before = signal.getsignal(signal.SIGTERM)

    with StopSignal() as stop:
        quiet = stop.requested
        signal.raise_signal(signal.SIGTERM)
        asked = stop.requested

    assert (quiet, asked) == (False, True)
    assert stop.received is signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_second_signal_ends_the_process_at_once():
    """Whatever hangs, it does not take a SIGKILL to get rid of it."""
    done = subprocess.run([sys.executable, "-c", TWO_SIGNALS], timeout=20, check=False)

    assert done.returncode == -signal.SIGTERM


def test_a_request_to_save_does_not_stop():
    """SIGUSR1 stays until the ranks have agreed on it, and no longer."""
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGUSR1)
        asked = (stop.requested, stop.save_requested)
        stop.agree(False, True)

    assert asked == (False, True)
    assert (stop.save_agreed, stop.save_requested) == (True, False)


@pytest.mark.parametrize("what", ["SIGTERM", "time"])
def test_a_stop_cuts_a_wait_short(what):
    """A wait without end is left by a signal, or at the end of the time, and the reason is said."""
    with StopSignal(time.monotonic() + 0.05 if what == "time" else None) as stop:
        wait = (lambda: signal.raise_signal(signal.SIGTERM)) if what == "SIGTERM" else (lambda: time.sleep(60))
        with pytest.raises(StoppedWaitingError), stop.waiting():
            wait()
        with pytest.raises(StoppedWaitingError), stop.waiting():
            pytest.fail("entered a wait although a stop was requested before")

    assert stop.requested
    assert stop.reason == ("SIGTERM received" if what == "SIGTERM" else "--max-time is up")


def test_a_request_to_save_does_not_cut_a_wait_short():
    """The data that is read then is not lost."""
    with StopSignal() as stop, stop.waiting():
        signal.raise_signal(signal.SIGUSR1)

    assert stop.save_requested


def test_a_request_to_save_before_the_run_harms_nothing():
    """By default SIGUSR1 ends a process."""
    with save_requests_ignored():
        signal.raise_signal(signal.SIGUSR1)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGQUIT"])
def test_a_signal_that_was_ignored_stays_ignored(name):
    """As `nohup` leaves it; else it asks to save and stop like SIGTERM."""
    number = signal.Signals[name]
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with StopSignal() as ignoring:
            signal.raise_signal(number)
        signal.signal(number, signal.SIG_DFL)
        with StopSignal() as heeding:
            signal.raise_signal(number)
    finally:
        signal.signal(number, before)

    assert not ignoring.requested
    assert heeding.reason == f"{name} received"


def test_the_hang_up_of_a_closing_terminal_comes_as_often_as_it_likes():
    """The kernel and the shell send it both, before and after the run has saved."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with StopSignal() as stop:
            for name in ("SIGTERM", "SIGHUP", "SIGHUP"):
                signal.raise_signal(signal.Signals[name])
        signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)

    assert stop.reason == "SIGTERM received"
