"""How ranks talk: the backend that the configuration asks for, on the device that is there."""

from __future__ import annotations

import pytest
import torch

from automodel_cli.engine.distributed.distributed_group import _backend
from automodel_cli.errors import ConfigError


@pytest.mark.parametrize(
    ("asked", "device", "taken"),
    [
        (None, "cpu", "gloo"),
        ("gloo", "cpu", "gloo"),
        ("gloo", "cuda", "gloo"),
        (None, "cuda", "cpu:gloo,cuda:nccl"),
        ("nccl", "cuda", "cpu:gloo,cuda:nccl"),
    ],
)
def test_the_key_dist_env_backend_chooses_how_devices_talk(asked, device, taken):
    """The hosts talk by gloo in any case, so that they never wait for a GPU."""
    assert _backend(asked, torch.device(device)) == taken


def test_nccl_on_a_cpu_is_refused():
    """It moves memory of GPUs only."""
    with pytest.raises(ConfigError, match="but the run is on the CPU"):
        _backend("nccl", torch.device("cpu"))
