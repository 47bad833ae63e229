"""The ranks of a run under `torch.distributed`: how a process joins them, and what they send each other.

Small integers travel between the hosts: how many tokens a step has, whether a rank wants to stop, whether one has
failed. Losses and norms travel between the devices.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from automodel_cli.engine.config.parallel_layout import degrees_of
from automodel_cli.engine.config.sections import DistributedSection
from automodel_cli.engine.config.settings import Settings
from automodel_cli.engine.distributed.environment import LAUNCHER_PID, RankPlace, complete_environment
from automodel_cli.engine.distributed.rank_group import RankGroup, T
from automodel_cli.errors import AmcliError, ConfigError, OutOfMemoryError, PeerFailedError

DIMENSIONS = ("dp_replicate", "dp_shard", "cp", "tp")
_PR_SET_PDEATHSIG = 1
# Our launcher sees all ranks of its machine, so it must have the time to find the one that hangs.
_AFTER_THE_LAUNCHER = timedelta(seconds=5)


@dataclass(frozen=True)
class DistributedGroup(RankGroup):
    """The ranks of a run under `torch.distributed`.

    Args:
        place: This process among all.
        degrees: How many ranks share what.
        mesh: The ranks in the four dimensions `DIMENSIONS`.
        device: Where this rank computes.
    """

    _: KW_ONLY
    mesh: DeviceMesh
    device: torch.device

    @property
    def is_alone(self) -> bool:
        """False, also for one rank."""
        return False

    @property
    def dp_rank(self) -> int:
        """See `RankGroup`."""
        return self.mesh.get_local_rank("dp_replicate") * self.degrees.dp_shard + self.mesh.get_local_rank("dp_shard")

    @property
    def cp_rank(self) -> int:
        """See `RankGroup`."""
        return self.mesh.get_local_rank("cp")

    @property
    def tp_rank(self) -> int:
        """See `RankGroup`."""
        return self.mesh.get_local_rank("tp")

    def submesh(self, name: str) -> DeviceMesh:
        """The ranks that do something together, by torchtitan's names.

        Args:
            name: One of `DIMENSIONS`; `loss` for the ranks that hold different tokens, whose gradients are summed;
                `fsdp` for those that shard a model, with the replicas as a second dimension where there are any.
        """
        if name == "loss":
            return self._flat("dp_replicate", "dp_shard", "cp")
        if name == "fsdp":
            shards = "dp_shard" if self.degrees.cp == 1 else "dp_shard_cp"
            if self.degrees.cp > 1:
                flat = self._flat("dp_shard", "cp")
                return self.mesh["dp_replicate", shards] if self.degrees.dp_replicate > 1 else flat
            return self.mesh["dp_replicate", shards] if self.degrees.dp_replicate > 1 else self.mesh[shards]
        return self.mesh[name]

    def _flat(self, *names: str) -> DeviceMesh:
        """Several dimensions as one, under their joined names."""
        return self.mesh[names]._flatten("_".join(names))

    def all_reduce_ints(self, *numbers: int) -> list[int]:
        """See `RankGroup`."""
        sums = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(sums)
        return sums.tolist()

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """See `RankGroup`."""
        dist.all_reduce(values)
        return values

    def broadcast(self, value: T | None) -> T:
        """See `RankGroup`."""
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]  # type: ignore[return-value]  # rank 0 gave one

    def gather(self, value: T) -> list[T] | None:
        """See `RankGroup`."""
        box: list[Any] | None = [None] * self.world_size if self.rank == 0 else None
        dist.gather_object(value, box, dst=0)
        return box

    def broadcast_tensors(self, tensors: Mapping[str, torch.Tensor] | None) -> Iterator[tuple[str, torch.Tensor]]:
        """See `RankGroup`."""
        described = None if tensors is None else [(name, item.shape, item.dtype) for name, item in tensors.items()]
        for name, shape, dtype in self.broadcast(described):
            tensor = torch.empty(shape, dtype=dtype) if tensors is None else tensors[name].contiguous()
            if tensor.numel():
                dist.broadcast(tensor.reshape(-1).view(torch.uint8), src=0)  # as bytes: gloo does not know every type
            yield name, tensor


def distributed_group(place: RankPlace, section: DistributedSection, device: torch.device) -> DistributedGroup:
    """Collective: the group of all ranks, once `torch.distributed` has connected them."""
    degrees = degrees_of(section, place.world_size)
    sizes = (degrees.dp_replicate, degrees.dp_shard, degrees.cp, degrees.tp)
    mesh = init_device_mesh(device.type, sizes, mesh_dim_names=DIMENSIONS)
    return DistributedGroup(place, degrees, mesh=mesh, device=device)


@contextmanager
def joined(place: RankPlace, settings: Settings) -> Iterator[DistributedGroup]:
    """Joins the other ranks for the duration of the body.

    Raises:
        ConfigError: This machine has no device for this rank, or the backend does not suit it.
        UsageError: The environment does not say where the ranks meet.
    """
    if place.is_ours:
        _end_with_the_launcher()
    timeout = timedelta(minutes=settings.dist_env.timeout_minutes)
    if place.is_ours:
        timeout += _AFTER_THE_LAUNCHER
    _quiet()
    device = _device(settings.general.device, place)
    dist.init_process_group(
        _backend(settings.dist_env.backend, device),
        store=_store(place, timeout),
        rank=place.rank,
        world_size=place.world_size,
        timeout=timeout,
    )
    try:
        yield distributed_group(place, settings.distributed, device)
    except OutOfMemoryError:
        raise  # the others may be waiting in a collective, as after an unexpected exception
    except AmcliError:
        # All ranks know of it and none waits, so the group can be left in order.
        dist.destroy_process_group()
        raise
    # After any other exception a peer may be waiting inside a collective: only the end of this process frees it.
    dist.destroy_process_group()


def _quiet() -> None:
    """Silences warnings of torch that every rank repeats and that do not apply here."""
    # Weights are gathered in two steps where two kinds of ranks share them: the order of torch's own layouts.
    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)
    # The engine never changes a model's output in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def _store(place: RankPlace, timeout: timedelta) -> dist.Store | None:
    """Where the ranks leave their addresses; None lets torch make it from the environment."""
    if place.world_size == 1:
        return dist.HashStore()  # no other rank to meet
    complete_environment(place)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    # torchrun keeps its store when it starts the ranks again, and with it the addresses of those that died.
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, place.world_size, is_master=False, timeout=timeout)
    return dist.PrefixStore(f"amcli attempt {place.restart_count}", store)


def _device(wanted: str, place: RankPlace) -> torch.device:
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if count == 1 and place.launcher == "srun":
        torch.cuda.set_device(0)  # torch would choose by LOCAL_RANK
        return torch.device("cuda", 0)  # each task sees only its own (--gpus-per-task)
    if place.local_rank >= count:
        raise ConfigError(
            f"{place.local_world_size} ranks are on {platform.node()}, which has {count} GPU{'s'[: count > 1]}; "
            "every rank needs its own",
            help=f"start {count} per machine, or --set device=cpu",
        )
    torch.cuda.set_device(place.local_rank)
    return torch.device("cuda", place.local_rank)


def _backend(wanted: str | None, device: torch.device) -> str:
    if wanted == "nccl" and device.type == "cpu":
        raise ConfigError("dist_env.backend is nccl, but the run is on the CPU", help="leave it out, or set it to gloo")
    # The hosts' messages go by gloo in any case, so that they never wait for a GPU.
    return "gloo" if wanted == "gloo" or device.type == "cpu" else "cpu:gloo,cuda:nccl"


def _end_with_the_launcher() -> None:
    """Asks the kernel for a SIGTERM when the launcher dies, however it dies: no rank is left behind.

    Raises:
        PeerFailedError: It has died before.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.environ.get(LAUNCHER_PID, str(os.getppid())) != str(os.getppid()):
        raise PeerFailedError("the process that started this rank has ended")
