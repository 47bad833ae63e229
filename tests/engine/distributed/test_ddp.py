"""Sums of gradients over replicas: those of the pass that was finished, and of no other."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from automodel_cli.engine.distributed.ddp import ReplicaSync


@pytest.fixture
def group():
    """A group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_what_an_ended_pass_has_sent_is_forgotten(group):
    """An exception in the backward pass leaves buckets on the way: the next step has its own gradients."""
    first, last = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    sync = ReplicaSync([first, last], group, bucket_bytes=1)
    sync.arm()
    (100 * last).sum().backward()  # `first` was never reached
    first.grad = last.grad = None

    sync.arm()
    (first + last).sum().backward()
    sync.finish()

    assert first.grad.tolist() == last.grad.tolist() == [1.0] * 3
