"""Products of fp32 matrices on a CPU, by the library that uses the processor better.

Torch multiplies fp32 matrices with MKL, which on AVX-512 processors that are not Intel's falls back to AVX2; oneDNN,
which torch has on board for other types, does not. On an AMD EPYC the three products of a head of 50,304 x 768 reach
190 GFLOP/s with it, and 90 without. Both are plain fp32; what differs is rounding, as between two processors.

Torch offers no switch for fp32, so `multiply_by_onednn` replaces the kernels of the two operators below every linear
layer, forward and backward, for the whole process (docs/adr/0024).
"""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import torch

_CPU_FACTS = Path("/proc/cpuinfo")
# Multiplications from which a product repays a call that is looked up from Python, and rows or columns from which
# oneDNN is ahead: 0.1 ms of one core. Smaller products stay where they are, bit for bit.
_LEAST_WORK = 2**22
_LEAST_SIDE = 16
# A transposed first factor is copied by one thread for the plain kernel; the kernel for gradients of weights copies
# with all, and pays from about this length of the sums.
_LONG_SUMS = 1024
_COLUMNS_PER_THREAD = 64


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
    """Whether oneDNN may be used, and this torch uses MKL on a processor on which that is slower.

    Constant for a machine and a configuration, so that a run resumed there gives the same bits.
    """
    return _may_take_onednn and _mkl_falls_back()


@functools.cache
def _mkl_falls_back() -> bool:
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    has_wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    is_intel = not _CPU_FACTS.exists() or "GenuineIntel" in _CPU_FACTS.read_text()
    return has_wide and not is_intel and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def multiply_by_onednn(library: str = "auto") -> bool:
    """Sends large products of fp32 matrices on the CPU through oneDNN, where that is faster and right; says whether.

    It holds for the process: models of every kind take it, since the operators are torch's own. Same shapes give the
    same bits on one machine; those of MKL differ by rounding, as between two processors.

    Args:
        library: `auto`, or `torch` to take what torch takes, also if another run of this process took oneDNN.
    """
    choose_library(library)
    return onednn_is_faster() and _kernels_are_replaced()


@functools.cache
def _kernels_are_replaced() -> bool:
    if not (hasattr(torch.library, "get_kernel") and _agrees()):
        return False
    product, sum_of_product = (torch.library.get_kernel(f"aten::{name}", "CPU") for name in ("mm", "addmm"))

    def mm(keys: Any, a_NK: torch.Tensor, b_KM: torch.Tensor) -> torch.Tensor:
        if onednn_is_faster() and is_worth_it(a_NK, b_KM):
            return onednn_product(a_NK, b_KM, None)
        result: torch.Tensor = product.call_boxed(keys, a_NK, b_KM)
        return result

    def addmm(
        keys: Any, bias: torch.Tensor, a_NK: torch.Tensor, b_KM: torch.Tensor, *, beta: Any = 1, alpha: Any = 1
    ) -> torch.Tensor:
        is_linear = beta == 1 and alpha == 1 and bias.dtype == torch.float32
        if is_linear and onednn_is_faster() and is_worth_it(a_NK, b_KM) and bias.shape == b_KM.shape[1:]:
            return onednn_product(a_NK, b_KM, bias)
        result: torch.Tensor = sum_of_product.call_boxed(keys, bias, a_NK, b_KM, beta=beta, alpha=alpha)
        return result

    with warnings.catch_warnings():
        # Torch warns that a kernel is replaced, which is the purpose here.
        warnings.filterwarnings("ignore", message="(?s).*Overriding a previously registered kernel")
        _registered().impl("mm", mm, "CPU", with_keyset=True, allow_override=True)
        _registered().impl("addmm", addmm, "CPU", with_keyset=True, allow_override=True)
    return True


def is_worth_it(a_NK: torch.Tensor, b_KM: torch.Tensor) -> bool:
    """Whether a product is one of large fp32 matrices that oneDNN multiplies fast as they lie in memory."""
    if not (a_NK.dtype == b_KM.dtype == torch.float32 and a_NK.dim() == b_KM.dim() == 2):
        return False
    (n, k), m = a_NK.shape, b_KM.shape[1]
    if min(n, k, m) < _LEAST_SIDE or n * k * m < _LEAST_WORK or b_KM.shape[0] != k:
        return False
    if 1 not in a_NK.stride() or not is_whole(b_KM):
        return False
    return a_NK.stride(1) == 1 or k >= _LONG_SUMS or m >= _COLUMNS_PER_THREAD * torch.get_num_threads()


def onednn_product(a_NK: torch.Tensor, b_KM: torch.Tensor, bias_M: torch.Tensor | None) -> torch.Tensor:
    """The product a @ b + bias, (N, M), contiguous, of matrices that lie in memory as `is_worth_it` wants them."""
    if bias_M is None and a_NK.stride(1) != 1 and b_KM.stride(1) == 1 and a_NK.shape[1] >= _LONG_SUMS:
        gradient, inputs = a_NK.T.to_mkldnn(), b_KM.to_mkldnn()
        product: torch.Tensor = torch.ops.aten.mkldnn_linear_backward_weights(gradient, inputs, b_KM, False)[0]
        return product
    return onednn_linear(a_NK, b_KM.T, bias_M)


def _agrees() -> bool:
    """Whether oneDNN gives the products that torch gives, in every way in which it is used here."""
    n, k, m = _LONG_SUMS, 64, 96
    generator = torch.Generator().manual_seed(0)
    x_NK, w_MK, g_NM = (torch.randn(shape, generator=generator) for shape in ((n, k), (m, k), (n, m)))
    asked = [(x_NK, w_MK.T, g_NM[0]), (g_NM, w_MK, None), (g_NM.T, x_NK, None), (g_NM[:64].T, x_NK[:64], None)]
    try:
        found = [onednn_product(a, b, bias) for a, b, bias in asked]
    except (RuntimeError, NotImplementedError, AttributeError):  # another version of torch may have changed an operator
        return False
    expected = [a @ b if bias is None else a @ b + bias for a, b, bias in asked]
    return all(torch.allclose(ours, torchs, rtol=1e-4, atol=1e-3) for ours, torchs in zip(found, expected, strict=True))


@functools.cache
def _registered() -> torch.library.Library:
    """Keeps the kernels in place for as long as the process lives."""
    return torch.library.Library("aten", "IMPL")
