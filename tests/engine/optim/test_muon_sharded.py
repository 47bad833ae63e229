"""Muon on matrices that are sharded over two processes."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from automodel_cli.engine.optim.muon import Muon


def network():
    torch.manual_seed(0)
    # 5 rows over 2 ranks: the shards are not of one size.
    return nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 8, bias=False))


def train(module, steps=4):
    optimizer = Muon(module.parameters(), lr=0.05)
    for seed in range(steps):
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
        module(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def rank_main(rank, directory):
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    try:
        sharded = network()
        for layer in sharded:
            fully_shard(layer)
        fully_shard(sharded)
        train(sharded)
        assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
        whole = [parameter.full_tensor().detach().clone() for parameter in sharded.parameters()]
        if rank == 0:
            torch.save(whole, f"{directory}/weights.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.mark.dist
def test_sharded_matrices_are_updated_as_one_process_updates_them(tmp_path):
    """After 4 steps under FSDP2, where each rank sees the same data, the weights are those of one process."""
    alone = network()
    train(alone)

    mp.spawn(rank_main, args=(str(tmp_path),), nprocs=2)

    for one, other in zip(alone.parameters(), torch.load(tmp_path / "weights.pt"), strict=True):
        assert torch.allclose(one, other, atol=2e-6)
