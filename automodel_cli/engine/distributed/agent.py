"""Starts the ranks of a run on this machine under torchrun's agent, and ends as they end.

The agent of `torch.distributed.run` meets the other machines, starts the processes, watches them and
passes signals on. What is added here: one message about a failure instead of one per rank, the exit
code of its kind, a grace period after a signal that is long enough to save, and a watch for ranks that
hang (`watch.py`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import elastic_launch

from automodel_cli.engine.distributed.environment import LAUNCHER_PID, REPORT_DIRECTORY, own_command
from automodel_cli.engine.distributed.launch_plan import LaunchPlan, num_cores
from automodel_cli.engine.distributed.report import RankReport, announced, read_reports, root_cause
from automodel_cli.engine.distributed.watch import Watch
from automodel_cli.errors import AmcliError, ExitCode, RankFailedError

_TAIL_LINES = 8


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
        plan: How many, and how they meet.
        arguments: The command line of each rank.
        grace_seconds: How long a rank may take to save after a signal, before it is killed.
        timeout_seconds: How long a rank may let the others wait, before it counts as hung.
        say: Is told why the ranks are started again.

    Raises:
        RankFailedError: A rank failed; the message says which and why, the exit code is that rank's.
    """
    _quiet()
    # torchrun would set 1 for several processes and nothing for one; who has chosen a number keeps it.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // plan.ranks_per_node)))
    with tempfile.TemporaryDirectory(prefix="amcli-ranks-") as directory:
        os.environ[REPORT_DIRECTORY], os.environ[LAUNCHER_PID] = directory, str(os.getpid())
        watch = Watch(Path(directory), timeout_seconds, plan.max_restarts, say)
        try:
            config, program, program_arguments = torchrun.config_from_args(_torchrun_arguments(plan, arguments))
            config.shutdown_timeout = grace_seconds
            quiet = {local_rank: Std.ALL for local_rank in range(1, plan.ranks_per_node)}
            config.logs_specs = DefaultLogsSpecs(log_dir=str(Path(directory) / "logs"), redirects=quiet)
            with _save_requests_passed_on(Path(directory)), watch.running():
                elastic_launch(config, program)(*program_arguments)
            _raise_if_stopped(Path(directory))
        except SignalException as error:
            raise watch.verdict() or _after_signal(Path(directory), error.sigval) from None
        except ChildFailedError as error:
            raise watch.verdict() or _after_failure(Path(directory), error.failures) from None
        finally:
            del os.environ[REPORT_DIRECTORY], os.environ[LAUNCHER_PID]


@contextmanager
def _save_requests_passed_on(directory: Path) -> Iterator[None]:
    """Passes SIGUSR1 on to the ranks: torchrun's agent passes on only what ends them, and would die of this one."""

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
    """What torchrun would say is said once, below; each of its loggers has a level of its own."""
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
        # A static rendezvous has the machines numbered by hand; c10d numbers them as they come.
        backend = plan.rdzv_backend or ("c10d" if plan.node_rank is None else "static")
        line += [f"--rdzv-backend={backend}", f"--rdzv-endpoint={plan.rdzv_endpoint}", "--rdzv-id=amcli"]
    if plan.node_rank is not None:
        line.append(f"--node-rank={plan.node_rank}")
    return torchrun.get_args_parser().parse_args([*line, "--no-python", *own_command(), *arguments])


def _raise_if_stopped(directory: Path) -> None:
    """Ends as the ranks would have: they stopped early, all in order, so that nothing was started again.

    Raises:
        RankFailedError: With the exit code of a run that was interrupted.
    """
    stopped = [report for report in read_reports(directory) if report.exit_code == ExitCode.INTERRUPTED]
    cause = root_cause(stopped)
    if cause is not None:
        raise _failed(cause)


def _after_signal(directory: Path, received: signal.Signals) -> AmcliError:
    """What the ranks said when the signal had reached them; without a word, the shell's code for the signal."""
    report = root_cause(read_reports(directory))
    if report is not None:
        return _failed(report)
    return RankFailedError(
        f"{received.name} received: stopped before there was anything to save", exit_code=128 + received
    )


def _after_failure(directory: Path, failures: dict[int, ProcessFailure]) -> AmcliError:
    reports = read_reports(directory)
    cause = root_cause(reports)
    if cause is not None:
        return _failed(cause)
    # A process that was killed from outside leaves no report; those that noticed have left theirs.
    # SIGTERM is what the agent itself ends the others with, so any other end comes first.
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
    """The last lines that a rank without a voice wrote on its standard error."""
    files = sorted(directory.glob(f"logs/**/{local_rank}/stderr.log"))
    if not files:
        return ""
    lines = files[-1].read_text(errors="replace").strip().splitlines()[-_TAIL_LINES:]
    return "".join(f"\n  {line}" for line in lines)
