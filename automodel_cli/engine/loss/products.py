"""Products of fp32 matrices on a CPU, by the library that uses the processor better.

Torch multiplies fp32 matrices with MKL, which on AVX-512 processors that are not Intel's falls back to AVX2; oneDNN,
which torch has on board for other types, does not. On an AMD EPYC the three products of a head of 50,304 x 768 reach
190 GFLOP/s with it, and 90 without. Both are plain fp32; what differs is rounding, as between two processors.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch

_CPU_FACTS = Path("/proc/cpuinfo")


def times_transposed(a_NK: torch.Tensor, b_MK: torch.Tensor, out_NM: torch.Tensor | None = None) -> torch.Tensor:
    """The product a @ b.T, (N, M).

    Args:
        a_NK: First factor, with any strides.
        b_MK: Second factor, of the same dtype.
        out_NM: Memory that may be used for the result; without it, or where the library makes its own, it is fresh.
    """
    if a_NK.device.type == "cpu" and a_NK.dtype == torch.float32 and onednn_is_faster() and is_whole(b_MK):
        return onednn_linear(a_NK, b_MK)
    return a_NK @ b_MK.T if out_NM is None else torch.mm(a_NK, b_MK.T, out=out_NM)


def onednn_linear(a_NK: torch.Tensor, b_MK: torch.Tensor, bias_M: torch.Tensor | None = None) -> torch.Tensor:
    """The product a @ b.T + bias, (N, M), by oneDNN; fast where b `is_whole`."""
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(a_NK, b_MK, bias_M, "none", [], "")
    return product


def is_whole(matrix: torch.Tensor) -> bool:
    """Whether the rows, or the columns, of a matrix follow each other in memory without a gap.

    For the second factor of a product, oneDNN has fast kernels only then; with a gap it takes a thousand times as long.
    """
    rows, columns = matrix.shape
    return matrix.stride() in ((columns, 1), (1, rows))


_may_take_onednn = True


def choose_library(name: str) -> None:
    """Sets the library of this process: `auto`, or `torch` for what torch takes by itself (key `cpu_matmul`)."""
    global _may_take_onednn
    _may_take_onednn = name == "auto"


def onednn_is_faster() -> bool:
    """Whether oneDNN may be taken, and this torch multiplies with MKL on a processor for which that is slower.

    The same for a machine and a configuration at all times: a run that is resumed there gives the same bits.
    """
    return _may_take_onednn and _mkl_falls_back()


@functools.cache
def _mkl_falls_back() -> bool:
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    has_wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    is_intel = not _CPU_FACTS.exists() or "GenuineIntel" in _CPU_FACTS.read_text()
    return has_wide and not is_intel and hasattr(torch.ops.mkldnn, "_linear_pointwise")
