"""What the launcher does beside torchrun's agent."""

from __future__ import annotations

import os
import signal
import socket
import time
from datetime import timedelta

import pytest
from torch.distributed import TCPStore
from torch.distributed.elastic.multiprocessing import SignalException

from automodel_cli.engine.distributed import agent
from automodel_cli.engine.distributed.launch_plan import LaunchPlan
from automodel_cli.errors import UsageError


def test_a_store_at_the_rendezvous_is_told_from_another_program():
    """Another launcher's store is joined; a server that says nothing is refused in seconds, by its port."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        began = time.monotonic()

        with pytest.raises(UsageError, match=f"another program listens at port {port}"):
            agent._check_endpoint(LaunchPlan(2, 2, 2, rdzv_endpoint=f"localhost:{port}"))

        assert time.monotonic() - began < 5
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=5))
    agent._check_endpoint(LaunchPlan(2, 2, 2, rdzv_endpoint=f"localhost:{store.port}"))


@pytest.mark.parametrize(("first", "then", "is_raised"), [("SIGTERM", "SIGHUP", False), ("SIGHUP", "SIGINT", True)])
def test_the_hang_up_of_a_closing_terminal_does_not_end_the_wait_for_a_save(first, then, is_raised):
    """A second signal ends it, unless it is SIGHUP, which a terminal that closes sends twice."""
    raised = []
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a run in this process may have left it ignored
    with agent._stopped_by_signals():
        for name in (first, then):
            try:
                os.kill(os.getpid(), signal.Signals[name])
            except SignalException as error:
                raised.append(error.sigval.name)

    assert raised == ([first, then] if is_raised else [first])
    assert signal.signal(signal.SIGHUP, before) is signal.SIG_IGN


def test_signals_that_are_ignored_stay_ignored():
    """`nohup` and `disown` leave SIGHUP ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with agent._stopped_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
