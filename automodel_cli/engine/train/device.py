"""The machine of a run: its device, precision and threads, chosen once and shown at the start; and its memory."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from automodel_cli.engine.distributed.launch_plan import num_cores
from automodel_cli.engine.distributed.module_tree import is_meta
from automodel_cli.engine.distributed.rank_group import RankGroup
from automodel_cli.engine.models.float8 import check_float8
from automodel_cli.engine.train.cpu_products import multiply_by_onednn
from automodel_cli.errors import ConfigError

_WORDS = {
    "fp32": "fp32",
    "tf32": "fp32 with tf32 products",
    "bf16": "bf16 autocast, fp32 weights",
    "bf16-params": "bf16 weights",
    "fp8": "fp8 products of linear layers, bf16 autocast, fp32 weights",
}
_GATHERED = ", but gathered and multiplied in bf16 (mp_policy)"


@dataclass(frozen=True)
class Placement:
    """Where and how a run computes.

    Args:
        device: The device of the weights.
        autocast_dtype: Type of the matrix products, or None for that of the weights.
        name: The device as people know it.
        weight_dtype: Type of the weights, and so of the optimizer's state.
        precision: The precision in words.
        uses_float8: Whether linear layers are to multiply in 8 bits.
    """

    device: torch.device
    autocast_dtype: torch.dtype | None
    name: str
    weight_dtype: torch.dtype = torch.float32
    precision: str = _WORDS["fp32"]
    uses_float8: bool = False

    def memory_bytes(self) -> int:
        """Peak memory so far: allocated on a GPU, resident in RAM on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB

    def put(self, model: nn.Module) -> None:
        """Moves a model to the device, its weights in the type of the precision, whatever type they were made in.

        One without content gets the types and no memory.
        Buffers keep their type: rounded to bf16, the frequencies of rotary positions would be others.
        """
        if not is_meta(model):
            model.to(self.device)
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.dtype != self.weight_dtype:
                parameter.data = parameter.data.to(self.weight_dtype)


def place(
    device: str,
    precision: str,
    num_threads: int | None,
    *,
    deterministic: bool = False,
    gathers_bf16: bool = False,
    cpu_matmul: str = "auto",
) -> Placement:
    """Resolves `device`, `precision`, `num_threads`, `deterministic` and `cpu_matmul` of the configuration here.

    With `gathers_bf16`, FSDP2 gives every layer its weights in bf16, and the words of the precision say so.

    Raises:
        ConfigError: A GPU is asked for and there is none, or the device lacks the precision.
    """
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    if deterministic:
        _be_deterministic()
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise ConfigError("device is `cuda`, but torch finds no GPU here", help="device: auto takes what is there")
    chosen = torch.device("cuda" if has_gpu and device != "cpu" else "cpu")
    bf16_on_gpu = chosen.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    works = "precision: fp32 works on every device"
    if precision.startswith("bf16") and chosen.type == "cuda" and not bf16_on_gpu:
        raise ConfigError(f"precision is `{precision}`, but this GPU has no bf16", help=works)
    if precision == "tf32" and (chosen.type == "cpu" or torch.cuda.get_device_capability(chosen) < (8, 0)):
        raise ConfigError("precision is `tf32`, but only GPUs from Ampere on have it", help=works)
    if precision == "fp8":
        check_float8(chosen)
    if precision == "auto":
        precision = "bf16" if bf16_on_gpu else "fp32"
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    if chosen.type == "cuda":
        name = torch.cuda.get_device_name(chosen)
    else:
        name = f"cpu, {torch.get_num_threads()} threads"
        if multiply_by_onednn(cpu_matmul) and precision == "fp32":
            name += ", products by oneDNN"
    return Placement(
        device=chosen,
        autocast_dtype=torch.bfloat16 if precision in ("bf16", "fp8") else None,
        name=name,
        weight_dtype=torch.bfloat16 if precision == "bf16-params" else torch.float32,
        precision=_WORDS[precision] + (_GATHERED if gathers_bf16 else ""),
        uses_float8=precision == "fp8",
    )


def _be_deterministic() -> None:
    """Algorithms that give the same bits every time; an operation that has none raises when it is used."""
    # cuBLAS reads it when it is first used; without it, products on several streams may differ.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


_GROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes.

    Args:
        used: By this process: allocated by torch on a GPU, resident in RAM on a CPU.
        free: What this process could still take, its own unused reserve included.
        total: Of the device, or what this process is allowed of it.
    """

    used: int
    free: int
    total: int


def device_memory(device: torch.device) -> DeviceMemory:
    """The memory of a device, now."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        used, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
        return DeviceMemory(used, free + reserved - used, total)
    return _host_memory()


def _host_memory() -> DeviceMemory:
    """Of this machine, of the control group and of the process's own limit, whichever is tightest."""
    page = os.sysconf("SC_PAGE_SIZE")
    # macOS has no such file; there the whole of the memory counts as free.
    sizes = _numbers(Path("/proc/self/statm"))
    address_space, used = (sizes[0] * page, sizes[1] * page) if len(sizes) > 1 else (0, 0)
    total = os.sysconf("SC_PHYS_PAGES") * page
    free = _available() or total - used
    limit = _numbers(_GROUP / "memory.max")
    taken = _numbers(_GROUP / "memory.current")
    if limit and taken and limit[0] < total:
        total, free = limit[0], min(free, limit[0] - taken[0] + _reclaimable())
    allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
    if allowed != resource.RLIM_INFINITY and allowed < total:
        total, free = allowed, min(free, allowed - address_space)
    return DeviceMemory(used, max(0, free), total)


def _numbers(path: Path) -> list[int]:
    """The whole numbers of a small file; none where it is not there."""
    with contextlib.suppress(OSError):
        return [int(word) for word in path.read_text().split() if word.isdecimal()]
    return []


def _reclaimable() -> int:
    """Pages of files that count as taken, and that the kernel gives up when memory is asked for."""
    with contextlib.suppress(OSError):
        for line in (_GROUP / "memory.stat").read_text().splitlines():
            if line.startswith("inactive_file "):
                return int(line.split()[1])
    return 0


def _available() -> int | None:
    """What Linux could give without swapping."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def threads_of(saved: int, group: RankGroup, *, is_elastic: bool = False) -> int | None:
    """Those of the saved run, as other numbers give other bits; None leaves the choice to torch.

    Args:
        saved: Of the run that goes on; 0 for a new one.
        group: The ranks.
        is_elastic: Whether the bits must not depend on how many ranks share a machine.
    """
    if is_elastic:
        return 1
    if group.is_alone:
        return saved or None
    # Each rank gets its share of the machine: a run that was saved alone must not start all cores in every rank.
    share = max(1, num_cores() // group.place.local_world_size)
    return min(saved or share, share)
