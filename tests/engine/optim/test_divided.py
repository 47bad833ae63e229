"""Muon's work divided among the ranks of a shard group, against every rank doing all of it."""

from __future__ import annotations

import hashlib

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from automodel_cli.engine.optim import divided, muon

# Rows that the ranks divide, that they do not, fewer than ranks, and a stack of experts.
SHAPES = [(16, 8), (5, 12), (3, 7), (32, 8), (6, 4, 10), (8, 64), (9, 9)]


def layouts(world):
    """Meshes and placements that one group of ranks shards."""
    found = {"rows": ((world,), (Shard(0),)), "columns": ((world,), (Shard(1),))}
    if world == 4:
        found["copies of shards"] = ((2, 2), (Replicate(), Shard(0)))
    return found


def trained(mesh, placements, steps=3):
    """SHA-256 of the weights and momenta after some steps, and how many matrices this rank orthogonalised."""
    generator = torch.Generator().manual_seed(0)
    parameters = [
        distribute_tensor(torch.randn(shape, generator=generator), mesh, placements).requires_grad_()
        for shape in SHAPES
    ]
    optimizer = muon.Muon(
        [{"params": parameters[::2]}, {"params": parameters[1::2], "ns_steps": 3, "adjust_lr_fn": "match_rms_adamw"}]
    )
    calls = []
    plain = muon.orthogonalised
    muon.orthogonalised = lambda *args: calls.append(1) or plain(*args)
    try:
        for _ in range(steps):
            for parameter in parameters:
                gradient = torch.randn(parameter.shape, generator=generator)
                parameter.grad = distribute_tensor(gradient, mesh, placements)
            optimizer.step()
    finally:
        muon.orthogonalised = plain
    digest = hashlib.sha256()
    for parameter in parameters:
        for tensor in (parameter.detach(), optimizer.state[parameter]["momentum_buffer"]):
            assert tensor.placements == tuple(placements)
            digest.update(tensor.full_tensor().numpy().tobytes())
    return digest.hexdigest(), len(calls) // steps


def rank_main(rank, world, directory):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=world)
    divided._ELEMENTS_OF_A_RANK = 300  # several buckets
    try:
        for sizes, placements in layouts(world).values():
            mesh = init_device_mesh("cpu", sizes)
            ours, share = trained(mesh, placements)
            by_owner, muon.shard_group = muon.shard_group, lambda tensor: None
            theirs, everything = trained(mesh, placements)
            muon.shard_group = by_owner
            assert ours == theirs
            total = torch.tensor(share)
            dist.all_reduce(total, group=mesh.get_group(len(sizes) - 1))
            assert total.item() == everything == len(SHAPES)
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.mark.dist
@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_divided_work_gives_the_bits_of_all_ranks_doing_all(tmp_path, world):
    """Weights and momenta by SHA-256 after 3 steps; each matrix is worked on by one rank of its group, once."""
    mp.spawn(rank_main, args=(world, str(tmp_path)), nprocs=world)


@given(
    shapes=st.lists(st.tuples(st.integers(1, 64), st.integers(1, 64)), min_size=1, max_size=30),
    num_ranks=st.integers(1, 8),
)
def test_no_rank_has_more_than_its_share_and_one_matrix(shapes, num_ranks):
    """The bound of giving each matrix to whoever has the least: the mean, and the largest matrix on top."""
    costs = [rows * columns * min(rows, columns) for rows, columns in shapes]

    owner = divided.owners(shapes, num_ranks)

    loads = [sum(cost for cost, of in zip(costs, owner, strict=True) if of == rank) for rank in range(num_ranks)]
    assert max(loads) <= sum(costs) / num_ranks + max(costs)
