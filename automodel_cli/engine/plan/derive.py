"""From a configuration to its derived numbers, and to a plan: memory, the batch that fits, and hours.

Torch-free arithmetic on a configuration that has passed the checks. A part that is not known is
None, and `unknown` says why; the parts that do not depend on it are there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from automodel_cli.engine.config.check_data import training_tokens
from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.parallel_layout import divisors
from automodel_cli.engine.plan.activations import activation_bytes
from automodel_cli.engine.plan.memory import Device, Memory, memory
from automodel_cli.engine.plan.model_config import UnknownModelError, model_shape
from automodel_cli.engine.plan.parameters import (
    CountedModel,
    ModelShape,
    ParameterCounts,
    count_parameters,
    flops_per_token,
    parameter_tensors,
)
from automodel_cli.engine.plan.run_sizes import RunSizes, Schedule, run_sizes, schedule, with_environment

# Share of a device's memory kept for what the estimate leaves out: context, workspaces, allocator fragments.
RESERVED_SHARE = 0.1


@dataclass(frozen=True)
class Derived:
    """Numbers that follow from a configuration.

    Args:
        model: None where it is not known without building it.
        unknown: Why not.
        parameters: Parameters of the model by part.
        sizes: What the configuration says.
        schedule: Batches, steps and tokens.
        flops_per_token: Forward and backward.
        flops: FLOPs of the whole run.
    """

    model: CountedModel | None
    unknown: str | None
    parameters: ParameterCounts | None
    sizes: RunSizes
    schedule: Schedule
    flops_per_token: int | None
    flops: int | None


@dataclass(frozen=True)
class Plan:
    """What a run would need.

    Args:
        derived: See `Derived`.
        world_size: Devices.
        memory: Memory of one device; None for a model that is not known, or without batch and length.
        gpu_memory: Memory of one device, in bytes.
        largest_local_batch: Samples of a forward pass that fit; 0 if none does, None if that is not known.
        largest_divisor: The largest of them that divides a rank's samples of a step.
        device: What it is planned for.
        peak_flops: Peak of one device in the run's precision; None where it is not known.
        mfu: Model FLOPs utilisation that is reached.
        hours: Duration of the whole run at that utilisation; None where something is not known.
    """

    derived: Derived
    world_size: int
    memory: Memory | None
    gpu_memory: int
    largest_local_batch: int | None
    largest_divisor: int | None
    device: Device
    peak_flops: float | None
    mfu: float
    hours: float | None

    @property
    def fits(self) -> bool | None:
        """Whether the run as configured fits the device, with the reserve kept; None if that is not known."""
        total = self.memory.total if self.memory else None
        return None if total is None else total <= budget(self.gpu_memory)


def derive(config: Config, world_size: int | None = None, model: CountedModel | None = None) -> Derived:
    """The numbers that follow from a configuration that has passed the checks.

    Args:
        config: As it is shown; environment variables are looked up here.
        world_size: Ranks of the run; None takes as few as the layout allows.
        model: Counted by a trace; None counts by formulas, where there are some.
    """
    config = with_environment(config)
    model, unknown = (model, None) if model is not None else _by_formulas_or_reason(config)
    sizes = run_sizes(config, world_size)
    parameters = count_parameters(model.tensors) if model else None
    amounts = schedule(sizes, parameters.total if parameters else None, training_tokens(config))
    per_token = model.flops_per_token(sizes.seq_len) if model and sizes.seq_len else None
    flops = per_token * amounts.tokens if per_token and amounts.tokens else None
    return Derived(model, unknown, parameters, sizes, amounts, per_token, flops)


def plan(
    config: Config,
    *,
    world_size: int | None,
    device: Device,
    gpu_memory: int | None = None,
    peak_tflops: float | None = None,
    mfu: float = 0.4,
    model: CountedModel | None = None,
) -> Plan:
    """A plan for a configuration that has passed the checks.

    Args:
        config: See `derive`.
        world_size: See `derive`.
        device: Gives the peak and the memory if the next two are None.
        gpu_memory: Bytes of one device.
        peak_tflops: Peak of one device; None takes the configuration's, else the device's. The latter is for bf16, so a
            run in fp32 has no hours without one of the others.
        mfu: Share of the peak that training reaches, counted by `parameters.flops_per_token`.
        model: See `derive`.
    """
    derived = derive(config, world_size, model)
    sizes, memory_bytes = derived.sizes, gpu_memory or device.memory_bytes
    named = peak_tflops or sizes.peak_tflops
    peak = named * 1e12 if named else device.peak_flops if sizes.is_bf16 else None
    needs = memory_of_batch(derived)
    largest, divisor = _largest_batches(derived, needs, budget(memory_bytes)) if needs else (None, None)
    if sizes.finds_local_batch and divisor:
        sizes = replace(sizes, local_batch_size=divisor)
        derived = replace(derived, sizes=sizes, schedule=replace(derived.schedule, accumulation=sizes.accumulation))
    batch = sizes.local_batch_size
    ranks = sizes.degrees.world
    hours = derived.flops / (ranks * peak * mfu) / 3600 if derived.flops and peak else None
    return Plan(
        derived=derived,
        world_size=ranks,
        memory=needs(batch, _accumulates(sizes, batch)) if needs and batch else None,
        gpu_memory=memory_bytes,
        largest_local_batch=largest,
        largest_divisor=divisor,
        device=device,
        peak_flops=peak,
        mfu=mfu,
        hours=hours,
    )


def budget(gpu_memory: int) -> int:
    """Bytes that the estimate may reach."""
    return int(gpu_memory * (1 - RESERVED_SHARE))


def by_formulas(shape: ModelShape) -> CountedModel:
    """A model of a family whose tensors, FLOPs and activations stand here as formulas."""
    return CountedModel(
        kind=str(shape.family),
        tensors=parameter_tensors(shape),
        num_layers=shape.num_layers,
        vocab_size=shape.vocab_size,
        channels=shape.channels,
        is_tied=shape.is_tied,
        flops_per_token=partial(flops_per_token, shape),
        activation_bytes=partial(activation_bytes, shape),
    )


def _by_formulas_or_reason(config: Config) -> tuple[CountedModel | None, str | None]:
    try:
        return by_formulas(model_shape(config)), None
    except UnknownModelError as error:
        return None, str(error)


Needs = Callable[[int, bool], Memory]


def memory_of_batch(derived: Derived) -> Needs | None:
    """The memory as a function of the samples of a forward pass and of whether a step has several."""
    model, sizes, seq_len = derived.model, derived.sizes, derived.sizes.seq_len
    if model is None or seq_len is None:
        return None
    return lambda batch, accumulates: memory(model, sizes, batch, seq_len, accumulates=accumulates)


def _accumulates(sizes: RunSizes, batch: int) -> bool:
    """Whether a step takes several passes of `batch` samples; where the global batch is not known, it does."""
    return sizes.global_batch_size is None or sizes.global_batch_size > batch * sizes.degrees.dp


def _largest_batches(derived: Derived, needs: Needs, limit: int) -> tuple[int | None, int | None]:
    """The most samples that fit in a forward pass, and the most that also divide a rank's samples of a step."""
    if needs(1, True).total is None:
        return None, None
    # Memory grows with the batch, but not linearly: the chunked loss holds no more than a chunk of logits.
    largest, beyond = 0, 1
    while (needs(beyond, True).total or 0) <= limit:
        largest, beyond = beyond, 2 * beyond
    while beyond - largest > 1:
        middle = (largest + beyond) // 2
        if (needs(middle, True).total or 0) <= limit:
            largest = middle
        else:
            beyond = middle
    samples = derived.sizes.global_batch_size
    if samples is None or samples % derived.sizes.degrees.dp:
        return largest, None
    per_rank = samples // derived.sizes.degrees.dp
    fitting = [
        batch for batch in divisors(per_rank) if (needs(batch, _accumulates(derived.sizes, batch)).total or 0) <= limit
    ]
    return largest, max(fitting, default=0)
