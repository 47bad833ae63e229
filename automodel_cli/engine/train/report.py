"""What the numbers of a run are measured against: its devices, and what a token costs its model."""

from __future__ import annotations

from torch import nn

from automodel_cli.engine.config.check import Settings
from automodel_cli.engine.observe.speed import Speed, peak_flops
from automodel_cli.engine.protocols import MapDataset
from automodel_cli.engine.train.device import Placement
from automodel_cli.engine.train.token_cost import model_flops_per_token


def speed_of(
    model: nn.Module, dataset: MapDataset, settings: Settings, placement: Placement, num_devices: int = 1
) -> Speed:
    """The maker of a run's reports.

    Args:
        model: Whole or sharded; one that does not state its layers and width gets no utilisation.
        dataset: States the length of its samples, or there is no utilisation.
        settings: Name the last step, and maybe the peak of a device.
        placement: Names the device.
        num_devices: Devices that work on a step together.
    """
    seq_len = getattr(dataset, "seq_len", None)
    cost = model_flops_per_token(model, seq_len) if isinstance(seq_len, int) else None
    named = settings.mfu.peak_tflops
    peak = named * 1e12 if named is not None else peak_flops(placement.name)
    return Speed(settings.step_scheduler.max_steps, num_devices, cost, peak)
