"""How much memory there is for this process, and how much it uses: of its GPU, or of this machine."""

from __future__ import annotations

import contextlib
import os
import resource
from dataclasses import dataclass
from pathlib import Path

import torch

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
