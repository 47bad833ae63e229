"""Sums of gradients over replicas: those of the pass that was finished, and of no other."""

from __future__ import annotations

import torch
from torch import nn

from automodel_cli.engine.distributed.ddp import ReplicaSync


def test_what_an_ended_pass_has_sent_is_forgotten(one_rank):
    """An exception in the backward pass leaves buckets on the way: the next step has its own gradients."""
    first, last = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    sync = ReplicaSync([first, last], one_rank, bucket_bytes=1)
    sync.arm()
    (100 * last).sum().backward()  # `first` was never reached
    first.grad = last.grad = None

    sync.arm()
    (first + last).sum().backward()
    sync.finish()

    assert first.grad.tolist() == last.grad.tolist() == [1.0] * 3
