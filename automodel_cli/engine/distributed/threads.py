"""How the CPU threads of torch wait for each other. Torch-free: it must be said before torch is imported."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

# Whoever sets one of these has made a choice about waiting, which stands.
_CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def wait_without_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Lets threads sleep while they wait for the others of a parallel region, instead of spinning.

    Spinning saves 1 to 2% on an idle machine. On one that is shared, or whose cores are all in use,
    a spinning thread holds the core that the awaited one needs: training the built-in model on
    two busy cores then took 2 to 4 times as long (docs/adr/0004). The results are the same bits.

    Args:
        environment: Changed in place, unless it holds a choice already.
    """
    if not any(name in environment for name in _CHOICES):
        environment["OMP_WAIT_POLICY"] = "passive"
