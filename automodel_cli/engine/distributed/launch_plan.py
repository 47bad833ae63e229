"""How many processes to start, and where: the options of the command line, checked. Torch-free."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from automodel_cli.errors import UsageError

NPROC_WORDS = ("auto", "gpu", "cpu")
_DEVICES = Path("/dev")


@dataclass(frozen=True)
class LaunchPlan:
    """A group of processes on one or more machines.

    Args:
        ranks_per_node: Processes on this machine.
        min_nodes: Machines that are needed to start.
        max_nodes: Machines that may take part.
        node_rank: Number of this machine; None lets the rendezvous number them.
        rdzv_endpoint: `host:port` at which machines meet; empty for one machine.
        rdzv_backend: Rendezvous backend; empty for torchrun's choice.
        max_restarts: Number of restarts of all ranks after a failure.
    """

    ranks_per_node: int
    min_nodes: int = 1
    max_nodes: int = 1
    node_rank: int | None = None
    rdzv_endpoint: str = ""
    rdzv_backend: str = ""
    max_restarts: int = 0

    @property
    def world_size(self) -> int:
        """Number of processes when all machines take part."""
        return self.ranks_per_node * self.max_nodes

    @property
    def backend(self) -> str:
        """What the machines meet by: a static rendezvous has them numbered by hand, c10d numbers them as they come."""
        return self.rdzv_backend or ("c10d" if self.node_rank is None else "static")


def launch_plan(
    nproc_per_node: str | None,
    *,
    nnodes: str = "1",
    node_rank: int | None = None,
    rdzv_endpoint: str = "",
    rdzv_backend: str = "",
    max_restarts: int = 0,
    device: str = "auto",
) -> LaunchPlan | None:
    """The plan of the options; None where one process without a launcher is enough.

    Args:
        nproc_per_node: A number, or `auto` (GPUs, else cores), `gpu`, `cpu`; None starts nothing.
        nnodes: A number of machines, or `1:4`.
        node_rank: See `LaunchPlan`.
        rdzv_endpoint: See `LaunchPlan`.
        rdzv_backend: See `LaunchPlan`.
        max_restarts: See `LaunchPlan`.
        device: The `device` of the configuration.

    Raises:
        UsageError: An option is no number, contradicts another, or asks for more GPUs than there are.

    >>> launch_plan("2", device="cpu").world_size
    2
    """
    if nproc_per_node is None:
        given = {"--nnodes": nnodes != "1", "--node-rank": node_rank is not None, "--rdzv-endpoint": rdzv_endpoint}
        given |= {"--rdzv-backend": rdzv_backend, "--max-restarts": max_restarts}
        for option, is_given in given.items():
            if is_given:
                raise UsageError(f"{option} needs --nproc-per-node", help="--nproc-per-node auto takes every device")
        return None
    ranks = _ranks_per_node(nproc_per_node, device)
    min_nodes, max_nodes = _nodes(nnodes)
    if max_nodes > 1 and not rdzv_endpoint:
        raise UsageError(
            f"--nnodes {nnodes} needs --rdzv-endpoint, the same on every machine",
            help="--rdzv-endpoint FIRST_HOST:29500",
        )
    if node_rank is not None and not 0 <= node_rank < max_nodes:
        raise UsageError(f"--node-rank is {node_rank}, but with --nnodes {nnodes} it must be 0 to {max_nodes - 1}")
    if ranks == 1 and max_nodes == 1 and max_restarts == 0:
        return None
    return LaunchPlan(ranks, min_nodes, max_nodes, node_rank, rdzv_endpoint, rdzv_backend, max_restarts)


def check_port(plan: LaunchPlan) -> None:
    """Refuses a port that this machine is to open for the others, and cannot.

    Raises:
        UsageError: Another program has it.
    """
    if plan.backend == "static" and plan.node_rank == 0 and taken_endpoint(plan):
        raise port_is_taken(plan)


def taken_endpoint(plan: LaunchPlan) -> tuple[str, int] | None:
    """Host and port of the ranks' own rendezvous, if they are of this machine and something listens there already."""
    host, _, digits = plan.rdzv_endpoint.rpartition(":")
    # Any other backend, such as etcd, is a service that is there before the ranks are.
    if plan.backend not in ("c10d", "static") or not host or not digits.isdigit():
        return None
    with socket.socket() as own, socket.socket() as every:
        every.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a connection that has ended takes no port
        try:
            own.bind((host, 0))
        except OSError:
            return None  # the address of another machine
        try:
            every.bind(("", int(digits)))
        except (OSError, OverflowError) as error:
            return (host, int(digits)) if getattr(error, "errno", None) == errno.EADDRINUSE else None
    return None


def port_is_taken(plan: LaunchPlan) -> UsageError:
    """That another program has the port at which the machines are to meet."""
    host, _, port = plan.rdzv_endpoint.rpartition(":")
    return UsageError(
        f"--rdzv-endpoint is {plan.rdzv_endpoint}, but another program listens at port {port} of this machine",
        help=f"choose another port, as {host}:29500, the same on every machine; `ss -ltnp sport = :{port}` shows the "
        "program",
    )


def num_gpus(environment: Mapping[str, str] = os.environ, devices: Path = _DEVICES) -> int:
    """GPUs that this process may use, without asking a driver.

    >>> num_gpus({"CUDA_VISIBLE_DEVICES": "0,3"})
    2
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() and name.strip() != "-1"])
    return len(list(devices.glob("nvidia[0-9]*")))


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _ranks_per_node(text: str, device: str) -> int:
    gpus = 0 if device == "cpu" else num_gpus()
    if text == "gpu" and gpus == 0:
        why = "device is `cpu`" if device == "cpu" else "there is none on this machine"
        raise UsageError(f"--nproc-per-node gpu asks for one process per GPU, but {why}", help="--nproc-per-node cpu")
    if text in NPROC_WORDS:
        return gpus if text == "gpu" or (text == "auto" and gpus) else num_cores()
    if not text.isdigit() or int(text) < 1:
        raise UsageError(
            f"--nproc-per-node is {text!r}, but it must be a number of at least 1, or {', '.join(NPROC_WORDS)}"
        )
    if gpus and int(text) > gpus:
        raise UsageError(
            f"--nproc-per-node is {text}, but this machine has {gpus} GPU{'s' if gpus > 1 else ''}, "
            "and every process needs its own",
            help=f"--nproc-per-node {gpus}, or --set device=cpu",
        )
    return int(text)


def _nodes(text: str) -> tuple[int, int]:
    least, _, most = text.partition(":")
    if not least.isdigit() or not (most or least).isdigit() or not 1 <= int(least) <= int(most or least):
        raise UsageError(f"--nnodes is {text!r}, but it must be a number of machines, or a range such as 1:4")
    return int(least), int(most or least)
