"""The random number generators of a process: seeds, and states that a checkpoint keeps."""

from __future__ import annotations

import random

import numpy as np
import torch

from automodel_cli.engine.checkpoint.snapshot import Snapshot
from automodel_cli.engine.distributed.rank_group import RankGroup


def rng_tensors() -> dict[str, torch.Tensor]:
    """The state of every random number generator of this process, as tensors (no pickle)."""
    version, words, gauss = random.getstate()
    if gauss is not None:
        # Only half a Gaussian pair would be lost; amcli draws none from this generator.
        random.setstate((version, words, None))
    numpy_state = np.random.get_state(legacy=False)
    if not isinstance(numpy_state, dict):
        raise TypeError("numpy's global generator is not the one that numpy documents")
    mersenne = numpy_state["state"]
    tensors = {
        "torch_cpu": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy_keys": torch.from_numpy(mersenne["key"].astype(np.int64)),
        "numpy_position": torch.tensor([mersenne["pos"], numpy_state["has_gauss"]], dtype=torch.int64),
        "numpy_cached": torch.tensor([numpy_state["gauss"]], dtype=torch.float64),
    }
    if torch.cuda.is_initialized():  # asking for it would open a GPU for a run on the CPU
        tensors["torch_cuda"] = torch.cuda.get_rng_state()
    return tensors


def restore_rng(tensors: dict[str, torch.Tensor]) -> None:
    """Restores the generators to the states that `rng_tensors` returned."""
    torch.set_rng_state(tensors["torch_cpu"])
    random.setstate((3, tuple(tensors["python"].tolist()), None))
    position, has_gauss = tensors["numpy_position"].tolist()
    keys = tensors["numpy_keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, float(tensors["numpy_cached"][0])))
    if "torch_cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["torch_cuda"])


def restore_generators(snapshot: Snapshot, group: RankGroup, seed: int) -> None:
    """Restores this rank's generators; a rank that the saved run did not have gets its own seed."""
    generators = (snapshot.rng_tensors, *snapshot.peer_rng_tensors)
    if group.rank < len(generators):
        restore_rng(generators[group.rank])
    else:
        seed_everything(seed + snapshot.step)
        own_generators(group, seed + snapshot.step)


def seed_everything(seed: int) -> None:
    """Seeds every generator that a model, a dataset or a user's code may use."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def own_generators(group: RankGroup, seed: int) -> None:
    """Gives ranks with other tokens other random numbers (dropout), and tensor-parallel peers equal ones."""
    reader = group.dp_rank * group.degrees.cp + group.cp_rank
    if reader > 0:
        seed_everything(int(np.random.SeedSequence([seed, reader]).generate_state(1, np.uint64)[0] >> 1))
