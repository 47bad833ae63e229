"""What the recipe builds from a configuration."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from automodel_cli.engine.data.collate import DataSection
from automodel_cli.engine.distributed.parallel_model import ParallelModel
from automodel_cli.engine.protocols import MapDataset
from automodel_cli.engine.train.objective import Objective
from automodel_cli.engine.train.step_numbers import DeviceGuard


@dataclass(frozen=True)
class RunParts:
    """The parts of a run, fitted to each other.

    Args:
        dataset: Of training.
        validation: Sets by name.
        model: On the ranks.
        vocab_size: Of the model; None where it does not say.
        sections: What the configuration says of each dataset, by its key.
        loss_fn: Objective of this model.
        optimizer: Of its parameters.
        how: What is said at the start of how the model is run.
        guard: Of the optimizer; None where its step waits for the numbers.
    """

    dataset: MapDataset
    validation: dict[str, MapDataset]
    model: ParallelModel
    vocab_size: int | None
    sections: dict[str, DataSection]
    loss_fn: Objective
    optimizer: torch.optim.Optimizer
    how: dict[str, str]
    guard: DeviceGuard | None
