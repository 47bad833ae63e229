"""What a run says of itself before its first step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from automodel_cli.engine.config.check import Settings
from automodel_cli.engine.distributed.parallel_model import ParallelModel
from automodel_cli.engine.observe.code_version import code_version
from automodel_cli.engine.protocols import MapDataset
from automodel_cli.engine.train.device import Placement
from automodel_cli.engine.train.sample_identity import amount_in_words, amount_of
from automodel_cli.engine.train.state import TrainState
from automodel_cli.engine.train.token_cost import model_flops_per_token


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
        dataset: That of training.
        how: How the model is run: kernels, compilation and the like.
        settings: Of the whole run.
        placement: Where it computes.
        state: Where it starts.
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
    counts = isinstance(seq_len, int) and model_flops_per_token(model, seq_len) is not None
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
