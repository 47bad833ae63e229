"""Stop signals are requests the first time, and final the second."""

from __future__ import annotations

import signal
import subprocess
import sys

from automodel_cli.engine.train.signals import StopSignal

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
