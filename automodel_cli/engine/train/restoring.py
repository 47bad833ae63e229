"""From a checkpoint to the live parts of a run, on one process or on many.

Where all ranks see the checkpoint, each reads what it holds. Elsewhere rank 0 reads; the others receive one
tensor at a time and keep what they hold of it. Either way a run continues on any number of ranks.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import torch

from automodel_cli.engine.checkpoint.lazy_tensors import LazyTensors
from automodel_cli.engine.checkpoint.snapshot import Snapshot
from automodel_cli.engine.distributed.parallel_model import ParallelModel
from automodel_cli.engine.distributed.rank_group import RankGroup
from automodel_cli.engine.optim.optimizer import load_optimizer_state
from automodel_cli.engine.train.state import restore_rng


def broadcast_snapshot(group: RankGroup, snapshot: Snapshot | None) -> Snapshot:
    """Rank 0's snapshot on every rank; weights and optimizer state only if each rank can read them by itself.

    Args:
        group: The ranks.
        snapshot: None on all ranks but 0.
    """
    small = None
    if snapshot is not None:
        weights, state = (
            tensors if isinstance(tensors, LazyTensors) else {}
            for tensors in (snapshot.model_tensors, snapshot.optim_tensors)
        )
        small = replace(snapshot, model_tensors=weights, optim_tensors=state)
    received = group.broadcast(small)
    sources = [item for item in (received.model_tensors, received.optim_tensors) if isinstance(item, LazyTensors)]
    is_seen = group.all(all(source.can_be_read() for source in sources))
    if snapshot is not None:
        return replace(snapshot, is_seen_by_all=is_seen)
    return replace(received, is_seen_by_all=True) if is_seen else replace(received, model_tensors={}, optim_tensors={})


def load_optimizer(optimizer: torch.optim.Optimizer, model: ParallelModel, snapshot: Snapshot) -> None:
    """Puts the optimizer's state back, sharded as the model is.

    Raises:
        CheckpointError: It belongs to another model or optimizer.
    """
    tensors = snapshot.optim_tensors
    if isinstance(tensors, LazyTensors) and snapshot.is_seen_by_all:
        tensors = model.read_state(tensors, tensors)
    else:
        tensors = model.own_state(tensors if model.group.rank == 0 else None)
    load_optimizer_state(optimizer, model.module, tensors)


def restore_generators(snapshot: Snapshot, group: RankGroup, seed: int) -> None:
    """Puts this rank's generators back; a rank that the saved run did not have draws its own numbers."""
    generators = (snapshot.rng_tensors, *snapshot.peer_rng_tensors)
    if group.rank < len(generators):
        restore_rng(generators[group.rank])
    else:
        seed_everything(seed + snapshot.step)
        own_generators(group, seed + snapshot.step)


def seed_everything(seed: int) -> None:
    """One seed for every generator that a model, a dataset or a user's code may draw from."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def own_generators(group: RankGroup, seed: int) -> None:
    """Other random numbers (dropout) on ranks that see other tokens; equal ones on tensor-parallel peers."""
    reader = group.dp_rank * group.degrees.cp + group.cp_rank
    if reader > 0:
        seed_everything(int(np.random.SeedSequence([seed, reader]).generate_state(1, np.uint64)[0] >> 1))
