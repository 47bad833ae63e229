"""Accelerators as a plan needs them: their peak, their memory, and sizes of memory as text."""

from __future__ import annotations

import re
from dataclasses import dataclass

from automodel_cli.engine.config.suggest import hint
from automodel_cli.engine.observe.speed import peak_flops
from automodel_cli.errors import UsageError

# 10^9 bytes, from the data sheets of NVIDIA (A100 80GB, H100 SXM, H200 SXM, HGX B200, L40S) and AMD (MI300X).
MEMORY_GB = {"A100": 80, "H100": 80, "H200": 141, "B200": 180, "L40S": 48, "MI300X": 192}
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[MGT]i?)B", re.IGNORECASE)
_UNITS = {"m": 10**6, "g": 10**9, "t": 10**12, "mi": 2**20, "gi": 2**30, "ti": 2**40}


@dataclass(frozen=True)
class Device:
    """One accelerator.

    Args:
        name: As its maker writes it.
        peak_flops: Dense bf16 matrix products, operations per second.
        memory_bytes: As its maker counts them.
    """

    name: str
    peak_flops: float
    memory_bytes: int


def device_named(text: str) -> Device:
    """The device of a name such as `h100`.

    Raises:
        UsageError: It is none of `MEMORY_GB`.

    >>> device_named("h200")
    Device(name='H200', peak_flops=989400000000000, memory_bytes=141000000000)
    """
    name = text.upper()
    peak = peak_flops(name) if name in MEMORY_GB else None
    if peak is None:
        known = [known.lower() for known in MEMORY_GB]
        other = "for another, leave --device out and give --peak-tflops and --gpu-memory"
        help_ = f"{hint(text.lower(), known, noun='devices')}; {other}"
        raise UsageError(f"no device is called {text}", help=help_)
    return Device(name, peak, MEMORY_GB[name] * 10**9)


def memory_bytes(text: str) -> int:
    """A size such as `80GB` (10^9 bytes each) or `79.6GiB` (2^30 bytes each).

    Raises:
        UsageError: It is none, or nothing.

    >>> memory_bytes("80GB"), memory_bytes("1.5 GiB")
    (80000000000, 1610612736)
    """
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found["number"]) * _UNITS[found["unit"].lower()]) if found else 0
    if size < 1:
        raise UsageError(f"--gpu-memory is {text!r}, but it must be a size", help="80GB, 79.6GiB or 512MB")
    return size
