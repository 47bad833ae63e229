"""The device, the precision and the threads of a run: chosen once, shown at the start."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass

import torch

from automodel_cli.errors import ConfigError


@dataclass(frozen=True)
class Placement:
    """Where and how a run computes.

    Args:
        device: The device of the weights.
        autocast_dtype: Type of the matrix products, or None for fp32 throughout.
        name: The device as people know it.
    """

    device: torch.device
    autocast_dtype: torch.dtype | None
    name: str

    def memory_bytes(self) -> int:
        """Peak memory so far: allocated on a GPU, resident in RAM on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB

    @property
    def precision(self) -> str:
        """The precision in words."""
        return "fp32" if self.autocast_dtype is None else "bf16 autocast, fp32 weights"


def place(device: str, precision: str, num_threads: int | None) -> Placement:
    """Resolves `device`, `precision` and `num_threads` of the configuration on this machine.

    Raises:
        ConfigError: A GPU is asked for and there is none, or it has no bf16.
    """
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise ConfigError("device is `cuda`, but torch finds no GPU here", help="device: auto takes what is there")
    chosen = torch.device("cuda" if has_gpu and device != "cpu" else "cpu")
    bf16_on_gpu = chosen.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and chosen.type == "cuda" and not bf16_on_gpu:
        raise ConfigError("precision is `bf16`, but this GPU has no bf16", help="precision: fp32 works on every device")
    use_bf16 = precision == "bf16" or (precision == "auto" and bf16_on_gpu)
    name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return Placement(chosen, torch.bfloat16 if use_bf16 else None, name)
