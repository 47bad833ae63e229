"""The device, the precision and the threads of a run: chosen once, shown at the start."""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import dataclass

import torch
from torch import nn

from automodel_cli.engine.distributed.module_tree import is_meta
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
