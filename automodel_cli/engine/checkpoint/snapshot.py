"""What a checkpoint holds, in memory: training makes one to save, and gets one back to resume. No torch.

`TrainState` is `state/train_state.json`: what a resumed run needs beside weights, optimizer and generators.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automodel_cli.engine.bounded import UnsoundError, read_object, typed
from automodel_cli.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


# Fields that the first checkpoints lacked; their default is right for those.
_ADDED = {"run_id", "stream"}
_LOSSES = ("loss", "val_loss", "best_val_loss")
_ANOTHER = "use another checkpoint"


@dataclass
class Snapshot:
    """The state of a run between two optimisation steps.

    Args:
        step: Optimisation steps done.
        config_yaml: The resolved configuration as text, `${VAR}` unresolved.
        model_tensors: Weights under Hugging Face names; contiguous, no two sharing storage.
        model_config: Contents of the model's `config.json`; None if it has none.
        optim_tensors: Optimizer state, keyed `<parameter name>.<state name>`.
        train_state: Step, tokens, data cursor and the like; values that JSON can hold.
        rng_tensors: States of the random number generators of rank 0; empty for weights alone,
            whose optimizer state is then not saved either.
        peer_rng_tensors: Those of ranks 1, 2, ...; none for a process alone.
        is_seen_by_all: Whether every rank of a run can read weights and optimizer state by itself.
    """

    step: int
    config_yaml: str
    model_tensors: Mapping[str, Tensor]
    model_config: dict[str, Any] | None
    optim_tensors: Mapping[str, Tensor]
    train_state: dict[str, Any]
    rng_tensors: dict[str, Tensor]
    peer_rng_tensors: tuple[dict[str, Tensor], ...] = ()
    is_seen_by_all: bool = False

    @property
    def is_weights_only(self) -> bool:
        """Whether there is nothing to go on from: a run always has generators."""
        return not self.rng_tensors


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
        """The state of a checkpoint, as `read_train_state` gives it.

        Raises:
            CheckpointError: A field is missing, unknown, or not what it must be.
        """
        expected, found = {item.name for item in fields(cls)}, set(values)
        if expected - found - _ADDED or found - expected:
            raise CheckpointError(
                f"the training state lacks {sorted(expected - found)} and has the unknown {sorted(found - expected)}",
                help="it was written by another version of amcli",
            )
        try:
            return typed(cls, values)
        except UnsoundError as error:
            raise CheckpointError(f"the training state is damaged: {error}", help=_ANOTHER) from error


@dataclass(frozen=True)
class TokenizerName:
    """The tokenizer of a run's data: the name that loads it, and the id that begins a document."""

    name: str | None = None
    bos_id: int | None = None


def read_train_state(path: Path, step: int | None = None) -> dict[str, Any]:
    """The training state of a checkpoint; of one that holds weights only, what it has of it.

    Args:
        path: The file.
        step: That the checkpoint is of; None where it is not known.

    Raises:
        CheckpointError: It is no sound JSON object, or a field is not what it must be.
    """
    values = read_object(path, CheckpointError, what="the training state", help=_ANOTHER, allow_nan=True)
    for name, value in values.items():
        # JSON has no number for a loss that is not finite, and `NaN` is what was written for it.
        if name in _LOSSES and isinstance(value, float) and not math.isfinite(value):
            values[name] = None
    try:
        state = typed(TrainState, values)
        typed(TokenizerName, values.get("tokenizer") or {}, "tokenizer")
        if step is not None and values.get("step", step) != step:
            raise UnsoundError(f"step is {state.step:,}, and the checkpoint is of step {step:,}")
    except UnsoundError as error:
        raise CheckpointError(f"the training state is damaged: {error}", where=str(path), help=_ANOTHER) from error
    return values
