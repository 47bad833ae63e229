"""Tokens per second, model FLOPs utilisation (MFU) and time left; peak FLOP/s of devices and FLOPs per token.

Peaks are the makers' figures for dense bf16 products with fp32 accumulation. No device reaches
them: a large matrix product on an H200 measures about 790 of its 989 TFLOP/s.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence

from automodel_cli.engine.observe.metrics import ReportedNumber, StepStats

# Long enough to even out single slow steps, short enough to follow a change of the machine.
_WINDOW_STEPS = 50


class Speed:
    """Makes the report of each step.

    Args:
        max_steps: The last step of the run.
        num_devices: Devices that work on a step together.
        flops_per_token: Cost of a label token, forward and backward; None if unknown.
        peak_flops: FLOP/s of one device; None if unknown.
    """

    def __init__(
        self,
        max_steps: int,
        num_devices: int = 1,
        flops_per_token: int | None = None,
        peak_flops: float | None = None,
    ) -> None:
        self._max_steps = max_steps
        self._num_devices = num_devices
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops
        self._recent_seconds: deque[float] = deque(maxlen=_WINDOW_STEPS)

    def stats(
        self,
        *,
        step: int,
        loss: float,
        grad_norm: float,
        lr: float,
        num_tokens: int,
        step_seconds: float,
        memory_bytes: int,
        tokens_seen: int,
        data_wait_seconds: float,
        reported: Sequence[ReportedNumber] = (),
    ) -> StepStats:
        """The report of a step; arguments as in `StepStats`, and `num_tokens` are its label tokens over all ranks."""
        self._recent_seconds.append(step_seconds)
        per_step = sum(self._recent_seconds) / len(self._recent_seconds)
        rate = num_tokens / step_seconds if step_seconds > 0 else 0.0
        per_device = rate / self._num_devices
        utilisation = None
        if self._flops_per_token is not None and self._peak_flops is not None:
            utilisation = per_device * self._flops_per_token / self._peak_flops
        return StepStats(
            step=step,
            max_steps=self._max_steps,
            loss=loss,
            grad_norm=grad_norm,
            lr=lr,
            tokens_per_second=rate,
            step_seconds=step_seconds,
            memory_bytes=memory_bytes,
            tokens_seen=tokens_seen,
            data_wait_seconds=data_wait_seconds,
            tokens_per_second_per_device=per_device,
            mfu=utilisation,
            data_wait_share=data_wait_seconds / step_seconds if step_seconds > 0 else 0.0,
            seconds_left=per_step * (self._max_steps - step),
            reported=reported,
        )


# TFLOP/s, dense bf16, by a pattern for the device's name; the first that fits counts. Sources: the data
# sheets of NVIDIA (A100, H100, H200, B200, L40S, ...) and AMD (MI300X, MI325X).
_PEAK_TFLOPS = (
    (r"GB200|GB300", 2500.0),
    (r"B200|B300", 2250.0),
    (r"B100", 1750.0),
    (r"GH200|H200", 989.4),
    (r"H100.*NVL", 835.5),
    (r"H100.*PCIe", 756.4),
    (r"H100", 989.4),
    (r"H800", 989.4),
    (r"H20\b", 148.0),
    (r"A100|A800", 312.0),
    (r"L40S", 362.0),
    (r"L40\b", 181.0),
    (r"L4\b", 121.0),
    (r"A40\b", 149.7),
    (r"A10G", 70.0),
    (r"A10\b", 125.0),
    (r"RTX\s*4090", 165.2),
    (r"RTX\s*3090", 71.0),
    (r"MI325", 1307.4),
    (r"MI300X", 1307.4),
    (r"MI250X", 383.0),
)


def peak_flops(device_name: str) -> float | None:
    """FLOP/s in dense bf16 of a device by its name in torch; None for one that the table lacks.

    >>> peak_flops("NVIDIA H100 80GB HBM3"), peak_flops("NVIDIA A100-SXM4-80GB"), peak_flops("cpu, 2 threads")
    (989400000000000, 312000000000000, None)
    """
    for pattern, tflops in _PEAK_TFLOPS:
        if re.search(rf"(?<![A-Za-z0-9])(?:{pattern})", device_name, re.IGNORECASE):
            return round(tflops * 1e12)
    return None


def flops_per_token(num_parameters: int, num_layers: int, width: int, seq_len: int) -> int:
    """FLOPs that training spends on a token: 6N + 12LCT (Chowdhery et al. 2022, appendix B).

    Args:
        num_parameters: N, those that are factors of matrix products; of a mixture of experts, the active ones.
        num_layers: L.
        width: C, of the queries of all heads together.
        seq_len: T. Attention counts whole, although a causal kernel skips half of it.

    >>> flops_per_token(124_000_000, 12, 768, 1024)
    857246208
    """
    return 6 * num_parameters + 12 * num_layers * width * seq_len
