"""What the recipe builds from a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from automodel_cli.engine.data.collate import DataSection
from automodel_cli.engine.protocols import MapDataset
from automodel_cli.engine.train.objective import Objective
from automodel_cli.engine.train.step_numbers import DeviceGuard

if TYPE_CHECKING:
    from automodel_cli.engine.distributed.spread import Spread


@dataclass(frozen=True)
class RunParts:
    """The parts of a run, fitted to each other.

    Args:
        dataset: Of training.
        validation: Sets by name.
        model: On its device, spread over the ranks if there are several.
        vocab_size: Of the model; None where it does not say.
        sections: What the configuration says of each dataset, by its key.
        loss_fn: Objective of this model.
        optimizer: Of its parameters.
        spread: How the model lies on the ranks; None for a process alone.
        how: What is said at the start of how the model is run.
        guard: Of the optimizer; None where its step waits for the numbers.
    """

    dataset: MapDataset
    validation: dict[str, MapDataset]
    model: nn.Module
    vocab_size: int | None
    sections: dict[str, DataSection]
    loss_fn: Objective
    optimizer: torch.optim.Optimizer
    spread: Spread | None
    how: dict[str, str]
    guard: DeviceGuard | None
