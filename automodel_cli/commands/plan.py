"""`amcli plan`: what a run would need, before anything is started.

`config show` prints the part of it that follows from the configuration alone (`derived_text`, `derived_document`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from automodel_cli.commands import columns, render
from automodel_cli.commands.options import ConfigOption, JsonOption, SetOption, UnsetOption
from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.load import load_config
from automodel_cli.engine.config.notes import unchecked_notes
from automodel_cli.errors import DataError

if TYPE_CHECKING:
    from automodel_cli.engine.plan.derive import Derived, Plan
    from automodel_cli.engine.plan.parameters import CountedModel

_NOT_KNOWN = "not known"
# What each category of memory holds.
_MEMORY_NOTES = {
    "weights": "this device's part",
    "gradients": "from one backward pass to the next",
    "optimizer": "what it keeps from step to step",
    "buffers": "bf16 copies of weights, gathered blocks, gradients on their way",
    "activations": "kept for the backward pass",
    "logits": "and what the loss makes of them",
}


def plan(
    config: ConfigOption = None,
    set_: SetOption = None,
    unset: UnsetOption = None,
    nproc_per_node: Annotated[
        int | None,
        typer.Option(
            "--nproc-per-node", min=1, help="Number of devices per machine; as few as the layout needs unless given."
        ),
    ] = None,
    nnodes: Annotated[int, typer.Option("--nnodes", min=1, help="Number of machines.")] = 1,
    gpu_memory: Annotated[
        str | None, typer.Option("--gpu-memory", metavar="SIZE", help="Memory of a device, such as 80GB or 79.6GiB.")
    ] = None,
    device: Annotated[str, typer.Option(help="Type of the devices: a100, h100, h200, b200, l40s or mi300x.")] = "h100",
    mfu: Annotated[float, typer.Option(help="Share of the peak that training reaches.", min=0.001, max=1.0)] = 0.4,
    peak_tflops: Annotated[
        float | None, typer.Option("--peak-tflops", min=0.001, help="Peak of a device, instead of its data sheet's.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Compute what a run would need: memory, batch, tokens, hours.

    Nothing is started and no GPU is needed: the machine may be another one. A model without a formula is built
    without memory and run once on tensors without content, which takes a few seconds.
    docs/plan.md has every formula and its source.

    \b
    Examples:
      amcli plan -c my.yaml
      amcli plan -c my.yaml --nproc-per-node 8 --device h200 --mfu 0.45
      amcli plan -c my.yaml --nproc-per-node 8 --nnodes 4 --gpu-memory 40GB --set distributed.tp_size=2
    """
    from automodel_cli.engine.config.trust import consent_notes
    from automodel_cli.engine.plan.derive import plan as plan_of
    from automodel_cli.engine.plan.memory import device_named, memory_bytes

    chosen = device_named(device)
    capacity = None if gpu_memory is None else memory_bytes(gpu_memory)
    world_size = None if nproc_per_node is None else nproc_per_node * nnodes
    # Nothing that it names runs, so no consent is needed.
    final = load_config(config, set_ or [], unset or (), trust=True)
    _check_configuration(final, world_size)
    render.notes(consent_notes(load_config(config)), render.speaker(as_json=True))
    plan_for = partial(
        plan_of, final, world_size=world_size, device=chosen, gpu_memory=capacity, peak_tflops=peak_tflops, mfu=mfu
    )
    found = plan_for()
    if found.derived.model is None and final.get("model"):
        # Tracing runs the model's code, so here the configuration of a checkpoint needs consent.
        model = _traced(load_config(config, set_ or [], unset or ()))
        found = plan_for(model=model) if model is not None else found
    _show(found, as_json=json_)


def _traced(config: Config) -> CountedModel | None:
    """The model counted by a trace; None, and a note that says why, where it cannot be."""
    from automodel_cli.engine.train.traced_model import UntraceableError, traced

    try:
        return traced(config)
    except UntraceableError as error:
        render.notes([f"the model is not known by a formula, and {error}"], render.speaker(as_json=True))
        return None


def _check_configuration(config: Config, world_size: int | None) -> None:
    """Refuses a wrong configuration; missing data is only noted, since a plan comes before the data."""
    aside = render.speaker(as_json=True)
    try:
        settings = checked(config, world_size)
        notes = (*settings.notes, *unchecked_notes(settings))
    except DataError as error:
        notes = tuple(map(str, error.problems or (error,)))
    render.notes(notes, aside)


class _Row(NamedTuple):
    """A line: a name, a number, and how the number comes about."""

    name: str
    value: str
    note: str = ""


def derived_text(derived: Derived) -> str:
    """The numbers as aligned lines."""
    return _aligned(_derived_rows(derived))


def derived_document(derived: Derived) -> dict[str, Any]:
    """The numbers for scripts; null is not known, and `unknown` says why the model is not."""
    parameters = derived.parameters
    return {
        "model": derived.model.kind if derived.model else None,
        "unknown": derived.unknown,
        "parameters": None if parameters is None else dataclasses.asdict(parameters),
        **dataclasses.asdict(derived.schedule),
        "flops_per_token": derived.flops_per_token,
        "flops": derived.flops,
    }


def _show(found: Plan, *, as_json: bool) -> None:
    """Prints a plan: the derived numbers, the memory of a device, the batch that fits, and hours."""
    if as_json:
        typer.echo(json.dumps(_document(found), indent=2))
        return
    rows = [*_derived_rows(found.derived), _Row("", ""), *_memory_rows(found), _Row("", ""), *_time_rows(found)]
    typer.echo(_aligned(rows))


def _document(found: Plan) -> dict[str, Any]:
    """The plan for scripts; sizes are bytes."""
    degrees = found.derived.sizes.degrees
    total = found.memory.total if found.memory else None
    return {
        "derived": derived_document(found.derived),
        "layout": {"strategy": _strategy(found), "world_size": found.world_size, **dataclasses.asdict(degrees)},
        "memory": None if found.memory is None else {**dataclasses.asdict(found.memory), "total": total},
        "gpu_memory": found.gpu_memory,
        "fits": found.fits,
        "largest_local_batch_size": found.largest_local_batch,
        "largest_dividing_local_batch_size": found.largest_divisor,
        "device": found.device.name,
        "peak_flops": found.peak_flops,
        "mfu": found.mfu,
        "hours": found.hours,
    }


def _derived_rows(derived: Derived) -> Iterator[_Row]:
    amounts, sizes = derived.schedule, derived.sizes
    yield _parameter_row(derived)
    samples = f"{_count(sizes.global_batch_size)} samples x {_count(amounts.seq_len)}"
    yield _Row("tokens per step", _count(amounts.tokens_per_step), samples)
    ranks = f"{amounts.dp_ranks} data-parallel rank{'' if amounts.dp_ranks == 1 else 's'}"
    to_find = sizes.finds_local_batch and sizes.local_batch_size is None
    batch = "auto" if to_find else _count(sizes.local_batch_size)
    shared = f"{_count(sizes.global_batch_size)} samples / ({batch} x {ranks})"
    yield _Row("gradient accumulation", "auto" if to_find else _count(amounts.accumulation), shared)
    yield _Row("steps", _count(amounts.steps))
    yield _Row("tokens in the run", _count(amounts.tokens))
    if amounts.tokens_per_parameter is not None:
        best = "about 20 make the best of the compute (Hoffmann et al. 2022)"
        yield _Row("tokens per parameter", f"{amounts.tokens_per_parameter:.3g}", best)
    if amounts.epochs is not None:
        yield _Row("epochs", f"{amounts.epochs:.3g}", f"of {_count(amounts.data_tokens)} tokens of data")
    if derived.flops_per_token is not None:
        how = "counted in a trace" if derived.model and derived.model.is_traced else "6N + 12LCT"
        yield _Row("FLOPs per token", _scientific(derived.flops_per_token), f"{how}, forward and backward")
    if derived.flops is not None:
        yield _Row("FLOPs of the run", _scientific(derived.flops))


def _parameter_row(derived: Derived) -> _Row:
    counts, model = derived.parameters, derived.model
    if counts is None or model is None:
        return _Row("parameters", _NOT_KNOWN, derived.unknown or "")
    parts = [
        f"embedding {counts.embedding:,} (also the output)" if model.is_tied else f"embedding {counts.embedding:,}"
    ]
    parts += [] if model.is_tied else [f"output {counts.head:,}"]
    parts += [f"positions {counts.positions:,}"] if counts.positions else []
    if counts.blocks:
        parts.append(f"blocks {model.num_layers} x {counts.blocks // model.num_layers:,}")
    else:  # no transformer: whatever its layers are
        parts.append(f"other {counts.norm:,}")
    return _Row("parameters", f"{counts.total:,}", f"{model.kind}: {', '.join(parts)}")


def _memory_rows(found: Plan) -> Iterator[_Row]:
    sizes, batch = found.derived.sizes, found.derived.sizes.local_batch_size
    degrees = sizes.degrees
    found_here = " for auto" if sizes.finds_local_batch else ""
    split = ", ".join(f"{name} {size}" for name, size in dataclasses.asdict(degrees).items() if size > 1)
    yield _Row("devices", str(found.world_size), f"{_strategy(found)}{': ' if split else ''}{split}")
    yield _Row(
        "memory of a device",
        "",
        f"local batch {_count(batch)}{found_here}, {'bf16' if sizes.is_bf16 else 'fp32'}, upper bound",
    )
    from automodel_cli.engine.plan.derive import RESERVED_SHARE

    if found.memory is None:
        why = found.derived.unknown or "the configuration has no batch size or no length of samples"
        yield _Row("  total", _NOT_KNOWN, why)
        return
    for name, size in dataclasses.asdict(found.memory).items():
        yield _Row(f"  {name}", _size(size), _MEMORY_NOTES[name] if size is not None else _why_not(name))
    kept = f"of {_size(found.gpu_memory)}, {RESERVED_SHARE:.0%} of it kept for what is not counted"
    verdict = {True: "fits: ", False: "does not fit: ", None: ""}[found.fits]
    yield _Row("  total", _size(found.memory.total), f"{verdict}{kept}")
    yield _batch_row(found)


def _batch_row(found: Plan) -> _Row:
    """The largest batch, and the largest that divides what a rank has to do in a step."""
    largest, divisor = found.largest_local_batch, found.largest_divisor
    samples = found.derived.sizes.global_batch_size
    if largest is None or divisor is None or samples is None:
        return _Row("largest local batch", _count(largest))
    per_rank = f"{samples // found.derived.sizes.degrees.dp:,} samples of a rank"
    note = f"{divisor:,} divides the {per_rank}" if divisor else f"no number that divides the {per_rank} fits"
    return _Row("largest local batch", f"{largest:,}", note)


def _time_rows(found: Plan) -> Iterator[_Row]:
    if found.peak_flops is None:
        why = f"the peak of {found.device.name} is for bf16, and the run is not: give --peak-tflops"
        yield _Row("time", _NOT_KNOWN, why)
        return
    name = f" of {found.device.name}" if found.peak_flops == found.device.peak_flops else ""
    peak = f"{found.world_size} x {found.peak_flops / 1e12:,.0f} TFLOP/s{name} x {found.mfu:.0%} utilisation"
    hours = _NOT_KNOWN if found.hours is None else _duration(found.hours)
    yield _Row("time", hours, peak)


def _why_not(category: str) -> str:
    if category == "optimizer":
        return "the state of this optimizer is not known here"
    return "attention holds T x T scores or masks, whose size depends on its kernel"


def _strategy(found: Plan) -> str:
    sizes = found.derived.sizes
    if sizes.degrees.world == 1 and not sizes.uses_fsdp:
        return "one process"
    return sizes.distributed.chosen_strategy() or "fsdp2"


def _aligned(rows: Iterator[_Row] | list[_Row]) -> str:
    return "\n".join(columns.lines(list(rows), columns.room(), right=[1], text=[2]))


def _count(number: int | None) -> str:
    return _NOT_KNOWN if number is None else f"{number:,}"


def _scientific(number: int) -> str:
    """Three digits, as papers print operations.

    >>> _scientific(1_702_292_839_464_960_000)
    '1.70e18'
    """
    digits, exponent = f"{number:.2e}".split("e")
    return f"{digits}e{int(exponent)}"


def _size(num_bytes: int | None) -> str:
    if num_bytes is None:
        return _NOT_KNOWN
    unit, name = next((pair for pair in ((10**9, "GB"), (10**6, "MB")) if num_bytes >= pair[0]), (1, "bytes"))
    return f"{num_bytes / unit:,.2f} {name}" if unit > 1 else f"{num_bytes} {name}"


def _duration(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.1f} min" if hours >= 1 / 60 else f"{hours * 3600:.2g} s"
