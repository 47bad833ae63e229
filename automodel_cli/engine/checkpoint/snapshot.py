"""What a checkpoint holds, in memory. Training builds one to save, and gets one back to resume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


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
