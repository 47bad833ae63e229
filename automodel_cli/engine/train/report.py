"""What the numbers of a run are measured against: its devices, and what a token costs its model."""

from __future__ import annotations

from torch import nn

from automodel_cli.engine.config.check import Settings
from automodel_cli.engine.models.sizes import has_experts, layers_of, width_of
from automodel_cli.engine.observe.peak import flops_per_token, peak_flops
from automodel_cli.engine.observe.speed import Speed
from automodel_cli.engine.protocols import MapDataset
from automodel_cli.engine.train.device import Placement


def speed_of(
    model: nn.Module, dataset: MapDataset, settings: Settings, placement: Placement, num_devices: int = 1
) -> Speed:
    """The maker of a run's reports.

    Args:
        model: Whole or sharded; one that does not state its layers and width gets no utilisation, and neither
            does a mixture of experts, since a token costs a part of its weights.
        dataset: States the length of its samples, or there is no utilisation.
        settings: Name the last step, and maybe the peak of a device.
        placement: Names the device.
        num_devices: Devices that work on a step together.
    """
    layers, width, seq_len = layers_of(model), width_of(model), getattr(dataset, "seq_len", None)
    cost = None
    if layers is not None and width is not None and isinstance(seq_len, int) and not has_experts(model):
        num_parameters = sum(parameter.numel() for parameter in model.parameters())  # a tied one counts once
        cost = flops_per_token(num_parameters, layers, width, seq_len)
    named = settings.mfu.peak_tflops
    peak = named * 1e12 if named is not None else peak_flops(placement.name)
    return Speed(settings.step_scheduler.max_steps, num_devices, cost, peak)
