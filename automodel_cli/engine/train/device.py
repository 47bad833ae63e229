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
from automodel_cli.engine.loss.products import multiply_by_onednn
from automodel_cli.engine.models.float8 import check_float8
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
    """The device and the types of a run.

    Args:
        device: The device of the weights.
        autocast_dtype: Type of the matrix products, or None for that of the weights.
        name: Name of the device, for users.
        weight_dtype: Type of the weights and of the optimizer's state.
        precision: The precision, for users.
        uses_float8: Whether linear layers are to multiply in 8 bits.
        product_dtype: Type that matrices are multiplied in, where it is not 8 bits.
    """

    device: torch.device
    autocast_dtype: torch.dtype | None
    name: str
    weight_dtype: torch.dtype = torch.float32
    precision: str = _WORDS["fp32"]
    uses_float8: bool = False
    product_dtype: torch.dtype = torch.float32

    def memory_bytes(self) -> int:
        """Peak memory so far: allocated on a GPU, resident in RAM on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB

    def put(self, model: nn.Module) -> None:
        """Moves a model to the device and converts its weights to `weight_dtype`.

        A meta model gets the types and no memory.
        Buffers keep their type: rounding to bf16 would change the frequencies of rotary positions.
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

    With `gathers_bf16`, FSDP2 gathers the weights of every layer in bf16, and `precision` says so.

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
    weight_dtype = torch.bfloat16 if precision == "bf16-params" else torch.float32
    autocast_dtype = torch.bfloat16 if precision in ("bf16", "fp8") else None
    return Placement(
        device=chosen,
        autocast_dtype=autocast_dtype,
        name=name,
        weight_dtype=weight_dtype,
        precision=_WORDS[precision] + (_GATHERED if gathers_bf16 else ""),
        uses_float8=precision == "fp8",
        product_dtype=torch.bfloat16 if gathers_bf16 else autocast_dtype or weight_dtype,
    )


def _be_deterministic() -> None:
    """Selects algorithms that give the same bits every time; an operation without one raises when it is used."""
    # cuBLAS reads this when it is first used; without it, products on several streams may differ.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


_CONTROL_GROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class DeviceMemory:
    """Memory in bytes.

    Args:
        used: By this process: allocated by torch on a GPU, resident in RAM on a CPU.
        free: Available to this process, including its own unused reserve.
        total: Size of the device's memory, or the limit of this process.
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
    """The tightest of the machine's memory, the control group's limit and the process's own limit."""
    page = os.sysconf("SC_PAGE_SIZE")
    # macOS has no such file; there all memory counts as free.
    sizes = _numbers(Path("/proc/self/statm"))
    address_space, used = (sizes[0] * page, sizes[1] * page) if len(sizes) > 1 else (0, 0)
    total = os.sysconf("SC_PHYS_PAGES") * page
    free = _available() or total - used
    limit = _numbers(_CONTROL_GROUP / "memory.max")
    taken = _numbers(_CONTROL_GROUP / "memory.current")
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
    """Cached pages of files, which count as used but which the kernel frees on demand."""
    with contextlib.suppress(OSError):
        for line in (_CONTROL_GROUP / "memory.stat").read_text().splitlines():
            if line.startswith("inactive_file "):
                return int(line.split()[1])
    return 0


def _available() -> int | None:
    """Bytes that Linux can give without swapping."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def threads_of(saved: int, group: RankGroup, *, is_elastic: bool = False) -> int | None:
    """The number of CPU threads of a rank, if the configuration sets none; None leaves the choice to torch.

    Args:
        saved: Number of the resumed run, which is kept, as another one gives other bits; 0 for a new run.
        group: The ranks.
        is_elastic: Whether the bits must not depend on the number of ranks on a machine.
    """
    if is_elastic:
        return 1
    if group.is_alone:
        return saved or None
    # Each rank gets its share of the cores: a run that was saved by one process must not use all cores in each rank.
    share = max(1, num_cores() // group.place.local_world_size)
    return min(saved or share, share)
