"""Starts the ranks of a run on this machine under torchrun's agent, and ends with their exit code.

The agent of `torch.distributed.run` connects to the other machines, starts the processes, watches them and
forwards signals. This module adds one message about a failure instead of one per rank, an exit code for each kind of
failure, a grace period after a signal that is long enough to save, and a watch for ranks that hang (`watch.py`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import elastic_launch

from automodel_cli import terminal
from automodel_cli.engine.distributed.environment import LAUNCHER_PID, REPORT_DIRECTORY, own_command, stop_signals
from automodel_cli.engine.distributed.launch_plan import LaunchPlan, num_cores, port_is_taken, taken_endpoint
from automodel_cli.engine.distributed.rank_report import RankReport, announced, read_reports, root_cause
from automodel_cli.engine.distributed.watch import Watch
from automodel_cli.errors import AmcliError, ExitCode, RankFailedError

_TAIL_LINES = 8
# How long another launcher may take to answer at the rendezvous.
_ANSWER_TIME = timedelta(seconds=1)


def run_ranks(
    plan: LaunchPlan,
    arguments: Sequence[str],
    *,
    grace_seconds: int,
    timeout_seconds: float,
    say: Callable[[str], None],
) -> None:
    """Runs `amcli *arguments` on every rank of this machine, until all have ended.

    Args:
        plan: Number of ranks, and where machines meet.
        arguments: Command line of each rank.
        grace_seconds: Time to save after a signal, before a rank is killed.
        timeout_seconds: Time that a rank may let the others wait, before it counts as hung.
        say: Called with the reason when the ranks are started again.

    Raises:
        RankFailedError: A rank failed; the message says which and why, the exit code is that rank's.
        UsageError: The machines are to meet at a port that another program has.
    """
    _quiet()
    _check_endpoint(plan)
    # torchrun would set 1 for several processes and nothing for one; the user's own number stays.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // plan.ranks_per_node)))
    with tempfile.TemporaryDirectory(prefix="amcli-ranks-") as directory:
        os.environ[REPORT_DIRECTORY], os.environ[LAUNCHER_PID] = directory, str(os.getpid())
        watch = Watch(Path(directory), timeout_seconds, plan.max_restarts, say)
        try:
            config, program, program_arguments = torchrun.config_from_args(_torchrun_arguments(plan, arguments))
            config.shutdown_timeout = grace_seconds
            config.signals_to_handle = ""  # see `_stopped_by_signals`
            quiet = {local_rank: Std.ALL for local_rank in range(1, plan.ranks_per_node)}
            config.logs_specs = DefaultLogsSpecs(log_dir=str(Path(directory) / "logs"), redirects=quiet)
            with _stopped_by_signals(), _save_requests_passed_on(Path(directory)), watch.running():
                elastic_launch(config, program)(*program_arguments)
            _raise_if_stopped(Path(directory))
        except SignalException as error:
            raise watch.verdict() or _after_signal(Path(directory), error.sigval) from None
        except ChildFailedError as error:
            raise watch.verdict() or _after_failure(Path(directory), error.failures) from None
        finally:
            del os.environ[REPORT_DIRECTORY], os.environ[LAUNCHER_PID]


def _check_endpoint(plan: LaunchPlan) -> None:
    """Refuses a port of this machine at which another program listens: the launcher would wait for it.

    Raises:
        UsageError: The port is in use by a program that is no launcher.
    """
    taken = taken_endpoint(plan)
    if taken is not None and not _answers_as_a_store(*taken):
        raise port_is_taken(plan)


def _answers_as_a_store(host: str, port: int) -> bool:
    """Whether torch's store, that of another launcher, listens there; a child process asks, as it can be killed."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # torch prints the frames of a refusal
            TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=_ANSWER_TIME)
            os._exit(0)
        finally:
            os._exit(1)
    deadline = time.monotonic() + _ANSWER_TIME.total_seconds()
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status == 0
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Ends the agent at the first stop signal: it forwards the signal to the ranks, and waits for them to save.

    The agent's own handlers would also end a run that was started by `nohup`, and end the wait by the second SIGHUP
    of a terminal that is closed.
    """
    received: list[int] = []

    def stop(number: int, frame: object) -> None:
        if received and signal.Signals(number).name == "SIGHUP":
            return
        received.append(number)
        terminal.hurry()
        raise SignalException(f"{signal.Signals(number).name} received", signal.Signals(number))

    previous = {number: signal.signal(number, stop) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            is_over = number.name == "SIGHUP" and bool(received)
            signal.signal(number, signal.SIG_IGN if is_over else handler)


@contextmanager
def _save_requests_passed_on(directory: Path) -> Iterator[None]:
    """Forwards SIGUSR1 to the ranks: torchrun's agent forwards only signals that end them, and dies of this one."""

    def pass_on(number: int, frame: object) -> None:
        for process in announced(directory):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    previous = signal.signal(signal.SIGUSR1, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, previous)


def _quiet() -> None:
    """Silences torchrun's loggers, each of which has its own level: failures are reported once, by this module."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _torchrun_arguments(plan: LaunchPlan, arguments: Sequence[str]) -> Any:
    """The parsed command line of torchrun that this plan stands for."""
    line = [f"--nproc-per-node={plan.ranks_per_node}", f"--nnodes={plan.min_nodes}:{plan.max_nodes}"]
    line.append(f"--max-restarts={plan.max_restarts}")
    if plan.max_nodes == 1 and not plan.rdzv_endpoint:
        line += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", f"--rdzv-id={os.getpid()}"]
    else:
        line += [f"--rdzv-backend={plan.backend}", f"--rdzv-endpoint={plan.rdzv_endpoint}", "--rdzv-id=amcli"]
    if plan.node_rank is not None:
        line.append(f"--node-rank={plan.node_rank}")
    return torchrun.get_args_parser().parse_args([*line, "--no-python", *own_command(), *arguments])


def _raise_if_stopped(directory: Path) -> None:
    """Reports ranks that were interrupted and saved; torchrun takes this for success.

    Raises:
        RankFailedError: With the exit code of an interrupted run.
    """
    stopped = [report for report in read_reports(directory) if report.exit_code == ExitCode.INTERRUPTED]
    cause = root_cause(stopped)
    if cause is not None:
        raise _failed(cause)


def _after_signal(directory: Path, received: signal.Signals) -> AmcliError:
    """The error that the ranks reported after the signal; without a report, the shell's exit code of the signal."""
    report = root_cause(read_reports(directory))
    if report is not None:
        return _failed(report)
    return RankFailedError(
        f"{received.name} received: the ranks have ended, and none reported that it saved the step that it was in",
        exit_code=128 + received,
        help="`amcli inspect-ckpt` on the run's directory shows the checkpoints that are there",
    )


def _after_failure(directory: Path, failures: dict[int, ProcessFailure]) -> AmcliError:
    reports = read_reports(directory)
    cause = root_cause(reports)
    if cause is not None:
        return _failed(cause)
    # A process that was killed from outside leaves no report; peers that noticed have left theirs.
    # The agent ends the others with SIGTERM, so a process that ended in another way comes first.
    by_blame = sorted(failures.items(), key=lambda item: (item[1].exitcode == -signal.SIGTERM, item[1].exitcode > 0))
    for rank, failure in by_blame:
        if not any(report.rank == rank for report in reports):
            how = f"was ended by {failure.signal_name()}" if failure.exitcode < 0 else f"ended with {failure.exitcode}"
            tail = _tail(directory, failure.local_rank)
            return RankFailedError(f"rank {rank} (process {failure.pid}) {how}{tail}", exit_code=ExitCode.INTERNAL)
    if reports:
        return _failed(reports[0])
    return RankFailedError(f"{len(failures)} ranks failed, and none said why", exit_code=ExitCode.INTERNAL)


def _failed(report: RankReport) -> RankFailedError:
    is_plain = report.rank == 0 and report.exit_code != ExitCode.INTERNAL
    where = "" if is_plain else f"rank {report.rank} on {report.host}: "
    frames = "".join(f"\n  at {frame}" for frame in report.frames)
    return RankFailedError(f"{where}{report.message}{frames}", exit_code=report.exit_code)


def _tail(directory: Path, local_rank: int) -> str:
    """The last lines of standard error of a rank that left no report."""
    files = sorted(directory.glob(f"logs/**/{local_rank}/stderr.log"))
    if not files:
        return ""
    lines = files[-1].read_text(errors="replace").strip().splitlines()[-_TAIL_LINES:]
    return "".join(f"\n  {line}" for line in lines)
