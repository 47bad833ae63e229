"""Variables of the environment that are read or set before torch is imported. Torch-free.

Read: the rank of this process and the number of ranks, as torchrun, srun or mpirun state them. A process that none of
them started is alone; so is a shell inside a Slurm allocation, which has similar variables but is no task of a step.
Set: how the CPU threads of torch wait, and the size of the memory pages of its tensors.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import zlib
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from automodel_cli.errors import UsageError

# Set by `amcli ... --nproc-per-node` for the ranks that it starts: it has printed the notes already, and reports
# their failures.
REPORT_DIRECTORY = "AMCLI_REPORT_DIR"
LAUNCHER_PID = "AMCLI_LAUNCHER_PID"
_PORTS = (20_000, 20_000)  # the first, and how many: below the range that systems choose from by themselves


def stop_signals() -> list[signal.Signals]:
    """The signals that ask a run to save and stop.

    SIGHUP and SIGQUIT only where they were not ignored when the process began, as by `nohup` or `disown`.
    """
    optional = [getattr(signal, name) for name in ("SIGHUP", "SIGQUIT") if hasattr(signal, name)]  # not on Windows
    heeded = [number for number in optional if signal.getsignal(number) is not signal.SIG_IGN]
    return [signal.SIGINT, signal.SIGTERM, *heeded]


@dataclass(frozen=True)
class RankPlace:
    """One process among those that train together.

    Args:
        rank: Number of this process, from 0, over all machines.
        world_size: Number of processes.
        local_rank: Number on this machine; chooses the device.
        local_world_size: Processes on this machine.
        restart_count: Number of restarts of all ranks after a failure.
        launcher: What started it: `torchrun`, `srun` or `mpirun`; empty for a process alone.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    restart_count: int = 0
    launcher: str = ""

    @property
    def speaks(self) -> bool:
        """Whether this process prints; all others are silent unless they fail."""
        return self.rank == 0

    @property
    def is_ours(self) -> bool:
        """Whether our own launcher watches this process."""
        return bool(self.launcher) and REPORT_DIRECTORY in os.environ


ALONE = RankPlace()


def own_command() -> list[str]:
    """The command that starts this program again.

    `python -m` would put the working directory before all packages: a `typer.py` that came along with a checkpoint
    would then run. So it stays out unless this process has it, as it has after `python -m automodel_cli`.
    """
    has_directory = not {"", str(Path.cwd())}.isdisjoint(sys.path)
    return [sys.executable, *([] if has_directory else ["-P"]), "-u", "-m", "automodel_cli"]


def rank_place(environment: Mapping[str, str] = os.environ) -> RankPlace:
    """The rank of this process, read from the environment.

    Raises:
        UsageError: The variables of the launcher contradict each other.

    >>> rank_place({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}).local_rank
    1
    >>> rank_place({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}).world_size
    1
    """
    for launcher, names in _VARIABLES.items():
        rank, world, local_rank, local_world = (environment.get(name, "") for name in names)
        if not rank.isdigit() or not world.isdigit():
            continue
        place = RankPlace(
            rank=int(rank),
            world_size=int(world),
            local_rank=int(local_rank) if local_rank.isdigit() else 0,
            local_world_size=int(found[0]) if (found := re.match(r"\d+", local_world)) else 1,  # Slurm: 8(x2)
            restart_count=int(environment.get("TORCHELASTIC_RESTART_COUNT", "0")),
            launcher=launcher,
        )
        if not (0 <= place.rank < place.world_size and 0 <= place.local_rank < place.world_size):
            raise UsageError(
                f"{launcher} says rank {place.rank} of {place.world_size}, local rank {place.local_rank}: "
                "a rank must be below the number of processes",
                help=f"check {', '.join(names)} in the environment",
            )
        return place if place.world_size > 1 or launcher == "torchrun" else ALONE
    return ALONE


_VARIABLES = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    # Only srun sets the number of tasks of a step; a batch script or a shell of salloc has none.
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
    "mpirun": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
}


def complete_environment(place: RankPlace, environment: MutableMapping[str, str] = os.environ) -> None:
    """Adds what `torch.distributed` needs to find the other processes, where torchrun has not set it.

    Raises:
        UsageError: mpirun spans several machines, and no variable names the one to meet at.
    """
    environment.setdefault("RANK", str(place.rank))
    environment.setdefault("WORLD_SIZE", str(place.world_size))
    environment.setdefault("LOCAL_RANK", str(place.local_rank))
    if "MASTER_ADDR" not in environment:
        if place.launcher == "srun":
            nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
            environment["MASTER_ADDR"] = first_host(nodes) or "localhost"
        elif place.local_world_size == place.world_size:
            environment["MASTER_ADDR"] = "localhost"
        else:
            raise UsageError(
                f"{place.launcher} started {place.world_size} ranks on several machines, and MASTER_ADDR is not set",
                help="export MASTER_ADDR=<name of the first machine> and MASTER_PORT=<a free port> to all of them",
            )
    if "MASTER_PORT" not in environment:
        job = "".join(environment.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "PMIX_NAMESPACE"))
        environment["MASTER_PORT"] = str(_PORTS[0] + zlib.crc32(job.encode()) % _PORTS[1])


def first_host(node_list: str) -> str:
    """The first machine of a list as Slurm writes it.

    >>> first_host("gpu[007-009,012],cpu1"), first_host("a1,a2")
    ('gpu007', 'a1')
    """
    match = re.match(r"([^,\[]*)(?:\[([^\],-]*))?", node_list)
    return f"{match[1]}{match[2] or ''}" if match else ""


# Variables by which a user may have chosen already how threads wait.
_CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def wait_without_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Lets threads sleep while they wait for the others of a parallel region, instead of spinning.

    Spinning saves 1 to 2% on an idle machine. On one that is shared, or whose cores are all in use,
    a spinning thread holds the core that the other thread needs: training the built-in model on
    two busy cores then took 2 to 4 times as long (docs/adr/0004). The results are the same bits.

    Args:
        environment: Changed in place, unless it holds a choice already.
    """
    if not any(name in environment for name in _CHOICES):
        environment["OMP_WAIT_POLICY"] = "passive"


_TORCH_SWITCH = "THP_MEM_ALLOC_ENABLE"


def ask_for_huge_pages(environment: MutableMapping[str, str] = os.environ) -> None:
    """Lets torch ask Linux for pages of 2 MiB for its tensors on the CPU, where Linux gives them on request.

    A large tensor is fresh memory every time, and the first touch of each of its pages costs a fault: with pages
    of 4 KiB a step of a GPT-2 with 124M weights in bf16 spent 2.05 s of a core where it now spends 1.74 s
    (`benchmarks/train.py --shape 124m`). The results are the same bits; the peak of memory grows by up to 4%.

    Args:
        environment: Changed in place, unless it holds a choice already.
    """
    environment.setdefault(_TORCH_SWITCH, "1")
