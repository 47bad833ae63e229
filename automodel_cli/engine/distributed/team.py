"""The ranks of a run: who this one is, what it reads, and how all of them agree.

Two kinds of messages. Small integers travel between the hosts (`agree`), without waiting for a device: how
many tokens a step has, whether anybody wants to stop, whether anybody failed. Losses and norms travel between
the devices (`sum`). Every decision of the loop is made from values that all ranks have received alike.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import platform
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from automodel_cli.engine.config.check import Settings
from automodel_cli.engine.config.layout import Degrees, degrees_of
from automodel_cli.engine.distributed.environment import LAUNCHER_PID, RankPlace, complete_environment
from automodel_cli.engine.protocols import IGNORED_LABEL
from automodel_cli.errors import AmcliError, ConfigError, OutOfMemoryError, PeerFailedError

DIMENSIONS = ("dp_replicate", "dp_shard", "cp", "tp")
_PR_SET_PDEATHSIG = 1
# Our launcher, which sees all ranks of its machine, is the first to tell which of them hangs.
_AFTER_THE_LAUNCHER = timedelta(seconds=5)

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """The ranks of a run, seen from one of them.

    Args:
        place: This process among all.
        degrees: How many ranks share what.
        mesh: The ranks in the four dimensions `DIMENSIONS`.
        device: Where this rank computes.
    """

    place: RankPlace
    degrees: Degrees
    mesh: DeviceMesh
    device: torch.device

    @property
    def rank(self) -> int:
        """Number of this rank over all."""
        return self.place.rank

    @property
    def dp_rank(self) -> int:
        """Which part of the global batch this rank reads: equal for tensor- and context-parallel peers."""
        return self.mesh.get_local_rank("dp_replicate") * self.degrees.dp_shard + self.mesh.get_local_rank("dp_shard")

    @property
    def cp_rank(self) -> int:
        """Which part of every sequence this rank holds."""
        return self.mesh.get_local_rank("cp")

    def agree(self, *numbers: int) -> list[int]:
        """The sums of whole numbers over all ranks, by way of the hosts."""
        sums = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(sums)
        return sums.tolist()

    def any(self, is_so: bool) -> bool:
        """Whether it is so on any rank."""
        return self.agree(int(is_so))[0] > 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, in place, by way of the devices."""
        dist.all_reduce(values)
        return values

    def tell(self, value: T | None) -> T:
        """Rank 0's value, on every rank."""
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]  # type: ignore[return-value]  # rank 0 gave one

    def collect(self, value: T) -> list[T] | None:
        """Every rank's value on rank 0, by rank; None on all others."""
        box: list[Any] | None = [None] * self.place.world_size if self.rank == 0 else None
        dist.gather_object(value, box, dst=0)
        return box

    def together(self, work: Callable[[], T]) -> T:
        """Does some work that may fail on some ranks only; then all fail, and the others say nothing.

        Raises:
            PeerFailedError: It failed elsewhere.
        """
        failure: BaseException | None = None
        result: T | None = None
        try:
            result = work()
        except Exception as error:
            failure = error
        failed_somewhere = self.any(failure is not None)
        if failure is not None:
            raise failure
        if failed_somewhere:
            raise PeerFailedError("another rank failed")
        return result  # type: ignore[return-value]  # the work has returned it

    def on_first(self, work: Callable[[], T]) -> T | None:
        """Does some work on rank 0 alone, while the others wait for its end; None on them."""
        return self.together(lambda: work() if self.rank == 0 else None)

    @contextmanager
    def entered_on_first(self, open_: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
        """A context that rank 0 alone enters and leaves; entering may fail, and then all do."""
        with contextlib.ExitStack() as stack:
            self.on_first(lambda: stack.enter_context(open_()))
            yield

    def shared(self, tensors: Mapping[str, torch.Tensor] | None) -> Iterator[tuple[str, torch.Tensor]]:
        """Rank 0's tensors on every rank, one after another, so that nobody has to hold them all.

        Args:
            tensors: On the CPU; None on all ranks but 0.
        """
        described = None if tensors is None else [(name, item.shape, item.dtype) for name, item in tensors.items()]
        for name, shape, dtype in self.tell(described):
            tensor = torch.empty(shape, dtype=dtype) if tensors is None else tensors[name].contiguous()
            if tensor.numel():
                dist.broadcast(tensor.reshape(-1).view(torch.uint8), src=0)  # as bytes: gloo does not know every type
            yield name, tensor

    def part_of_sequence(self, batch: dict[str, Any]) -> dict[str, Any]:
        """This rank's part of every sequence of a batch, with the positions that it stands at.

        Args:
            batch: Arrays (B, T), as the loader gives them; T is a multiple of the context-parallel ranks.

        Raises:
            ConfigError: T cannot be divided.
        """
        size = self.degrees.cp
        if size == 1:
            return batch
        B, T = batch["input_ids"].shape
        if T % size:
            raise ConfigError(f"samples have {T} tokens, which cannot be divided among {size} context-parallel ranks")
        begin, end = self.cp_rank * (T // size), (self.cp_rank + 1) * (T // size)
        part = {name: values[:, begin:end] for name, values in batch.items()}
        positions = np.broadcast_to(np.arange(begin, end, dtype=np.int64), (B, T // size)).copy()
        return {**part, "position_ids": part.get("position_ids", positions)}

    def dealt(self, batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """This rank's share of some batches, equally many for every rank: what is missing is a batch without labels.

        Ranks that share a model must use it together, and a masked batch adds nothing to a loss or a count.
        """
        mine: dict[str, Any] | None = None
        begun: dict[str, Any] | None = None
        for number, batch in enumerate(batches):
            place = number % self.degrees.dp
            begun = batch if place == 0 else begun
            mine = batch if place == self.dp_rank else mine
            if place == self.degrees.dp - 1 and mine is not None:
                yield self.part_of_sequence(mine)
                mine, begun = None, None
        if mine is None and begun is not None:
            mine = {**begun, "labels": np.full_like(begun["labels"], IGNORED_LABEL)}
        if mine is not None:
            yield self.part_of_sequence(mine)


@contextmanager
def joined(place: RankPlace, settings: Settings) -> Iterator[Team]:
    """Joins the other ranks for the duration of the body.

    Raises:
        ConfigError: This machine has no device for this rank, or the backend does not suit it.
        UsageError: Nobody said where to meet.
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
        degrees = degrees_of(settings.distributed, place.world_size)
        sizes = (degrees.dp_replicate, degrees.dp_shard, degrees.cp, degrees.tp)
        yield Team(place, degrees, init_device_mesh(device.type, sizes, mesh_dim_names=DIMENSIONS), device)
    except OutOfMemoryError:
        raise  # the others may be waiting in a collective, as after an exception that nobody expected
    except AmcliError:
        # All ranks know of it and none waits, so the group can be left in order.
        dist.destroy_process_group()
        raise
    # After any other exception a peer may be waiting inside a collective: only the end of this process frees it.
    dist.destroy_process_group()


def _quiet() -> None:
    """Silences what torch warns of on every rank and what does not apply here."""
    # Weights are gathered in two steps where two kinds of ranks share them: the order of torch's own layouts.
    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)
    # The engine never changes a model's output in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def _store(place: RankPlace, timeout: timedelta) -> dist.Store | None:
    """Where the ranks leave their addresses; None lets torch make it from the environment."""
    if place.world_size == 1:
        return dist.HashStore()  # nobody to meet
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
