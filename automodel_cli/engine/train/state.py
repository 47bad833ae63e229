"""What of a run survives the process: this dataclass and the random number generators.

Everything that a resumed run needs beside the weights and the optimizer is a field here;
nothing is collected by attribute name.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch

from automodel_cli.errors import CheckpointError

# Fields that the first checkpoints lacked; their default is right for those.
_ADDED = {"run_id", "stream"}


@dataclass
class TrainState:
    """Progress of a run.

    Args:
        step: Optimisation steps done.
        samples_consumed: The data cursor: samples trained on, over all ranks.
        tokens_seen: Label tokens trained on, over all ranks.
        loss: Training loss of the last step, in nats per token.
        val_loss: Last validation loss, in nats per token.
        best_val_loss: Lowest validation loss so far.
        train_seconds: Time inside training steps, over all processes that worked on this run.
        order_key: Identity of the sample order (seed and data); a resumed run must have the same.
        num_threads: CPU threads of torch; other numbers give other bits.
        tokenizer: Name and BOS id of the data's tokenizer, where the data has a manifest.
        run_id: Identity of the run, which a resumed one keeps; services that collect metrics know it by this.
        stream: The place in a dataset that is iterated; None for one with samples by number.
    """

    step: int = 0
    samples_consumed: int = 0
    tokens_seen: int = 0
    loss: float | None = None
    val_loss: float | None = None
    best_val_loss: float | None = None
    train_seconds: float = 0.0
    order_key: str = ""
    num_threads: int = 0
    tokenizer: dict[str, Any] | None = None
    run_id: str = ""
    stream: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The state as JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainState:
        """The state of a checkpoint.

        Raises:
            CheckpointError: A field is missing or unknown.
        """
        expected, found = {item.name for item in fields(cls)}, set(values)
        if expected - found - _ADDED or found - expected:
            raise CheckpointError(
                f"the training state lacks {sorted(expected - found)} and has the unknown {sorted(found - expected)}",
                help="it was written by another version of amcli",
            )
        return cls(**values)


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
    """Puts the generators back to what `rng_tensors` saw."""
    torch.set_rng_state(tensors["torch_cpu"])
    random.setstate((3, tuple(tensors["python"].tolist()), None))
    position, has_gauss = tensors["numpy_position"].tolist()
    keys = tensors["numpy_keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, float(tensors["numpy_cached"][0])))
    if "torch_cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["torch_cuda"])
