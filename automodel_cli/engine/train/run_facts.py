"""What a run reports before its first step, and the cost of a token, for its speed.

The FLOPs of a token follow from the model by the formula of `amcli plan`. Its N counts the elements of the matrices
that a token is multiplied with: those of all layers and the head, also a head that is the token embedding. Embeddings
that are looked up, norms and biases do not count. Of a mixture of experts only the experts that a token uses count.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from automodel_cli.engine.checkpoint.snapshot import TrainState
from automodel_cli.engine.config.settings import Settings
from automodel_cli.engine.distributed.parallel_model import ParallelModel
from automodel_cli.engine.models.sizes import attention_width_of, experts_of, layers_of
from automodel_cli.engine.observe.code_version import code_version
from automodel_cli.engine.observe.speed import Speed, flops_per_token, peak_flops
from automodel_cli.engine.protocols import MapDataset
from automodel_cli.engine.train.device import Placement
from automodel_cli.engine.train.resume_rules import amount_in_words, amount_of


def start_facts(
    model: ParallelModel,
    dataset: MapDataset,
    how: Mapping[str, str],
    settings: Settings,
    placement: Placement,
    state: TrainState,
    root: Path,
) -> dict[str, Any]:
    """The facts by name, in the order in which they are shown.

    Args:
        model: On the ranks.
        dataset: The training set.
        how: How the model is run: kernels, compilation and the like.
        settings: Sizes of a step, the layout, and whether checkpoints are written.
        placement: Device and types.
        state: Progress at the start.
        root: Directory of its checkpoints.
    """
    steps = settings.step_scheduler
    num_parameters = sum(parameter.numel() for parameter in model.module.parameters())  # a tied one counts once
    # FSDP2 gives a sharded model a class of its own, named after the model's.
    kind = type(model.module).__name__.removeprefix("FSDP")
    micro_batches = steps.global_batch_size // steps.micro_batch_size
    amount = amount_of(dataset)
    short = ", fewer than a step takes" if amount.isdigit() and int(amount) < steps.global_batch_size else ""
    seq_len = getattr(dataset, "seq_len", None)
    counts = isinstance(seq_len, int) and model_flops_per_token(model.module, seq_len) is not None
    idle_peak = settings.mfu.peak_tflops is not None and not counts
    git = code_version(Path.cwd())
    code = {} if git is None else {"code": f"{git['commit']:.10}" + (", with changes" if git["changed"] else "")}
    return {
        "model": f"{kind}, {num_parameters:,} parameters",
        **model.facts(settings.distributed),
        **how,
        "data": f"{amount_in_words(dataset)}{short}, {steps.global_batch_size} per step "
        f"({micro_batches} x {steps.micro_batch_size})",
        "device": f"{placement.name}, {placement.precision}",
        "steps": f"{state.step} -> {steps.max_steps}",
        "checkpoints": str(root) if settings.checkpoint.enabled else "off",
        **({"mfu": "not measured: the model states no layers and width, or the data no seq_len"} if idle_peak else {}),
        **code,
        "run_id": state.run_id,
    }


def speed_of(
    model: nn.Module,
    dataset: MapDataset,
    device_name: str,
    *,
    max_steps: int,
    num_devices: int,
    peak_tflops: float | None,
) -> Speed:
    """Measures the speed of a run.

    Args:
        model: Whole or sharded. If it does not state its layers and width, utilisation is not reported.
        dataset: The training set. If it does not state the length of its samples, utilisation is not reported.
        device_name: Model name of the devices.
        max_steps: Steps of the run.
        num_devices: Devices that work on a step together.
        peak_tflops: Peak of one device; None for that of its kind, if it is known.
    """
    seq_len = getattr(dataset, "seq_len", None)
    cost = model_flops_per_token(model, seq_len) if isinstance(seq_len, int) else None
    peak = peak_tflops * 1e12 if peak_tflops is not None else peak_flops(device_name)
    return Speed(max_steps, num_devices, cost, peak)


def model_flops_per_token(model: nn.Module, seq_len: int) -> int | None:
    """FLOPs of forward and backward pass for one token; None for a model that does not state its sizes.

    Args:
        model: Whole or sharded. A mixture of experts states how many it has, and how many a token is sent to.
        seq_len: Tokens of a sample.
    """
    layers, width = layers_of(model), attention_width_of(model)
    if layers is None or width is None:
        return None
    experts = experts_of(model)
    if experts is not None and experts.per_token is None:
        return None
    share = experts.per_token / experts.number if experts is not None and experts.per_token is not None else 1.0
    return flops_per_token(active_products(model, share), layers, width, seq_len)


def active_products(model: nn.Module, expert_share: float = 1.0) -> int:
    """Number of matrix elements that a token is multiplied with.

    Args:
        model: Whole or sharded; a tied matrix counts once.
        expert_share: Experts that a token is sent to, divided by all experts.
    """
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    # A head that is tied to the token embedding is a product all the same.
    looked_up -= {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    total = 0.0
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or id(parameter) in looked_up:
            continue
        total += parameter.numel() * (expert_share if ".experts." in name else 1.0)
    return round(total)
