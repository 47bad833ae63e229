"""How the numbers that follow from a configuration look: aligned lines, or JSON with stable keys."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import typer

from automodel_cli.commands import columns
from automodel_cli.engine.plan.derive import RESERVED_SHARE, Derived, Plan

_NOT_KNOWN = "not known"
# What each category of memory holds, as short as it can be said.
_MEMORY_NOTES = {
    "weights": "this device's part",
    "gradients": "from one backward pass to the next",
    "optimizer": "what it keeps from step to step",
    "buffers": "bf16 copies of weights, gathered blocks, gradients on their way",
    "activations": "kept for the backward pass",
    "logits": "and what the loss makes of them",
}


class Row(NamedTuple):
    """A line: what it is, how much, and how it comes about."""

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


def plan(found: Plan, *, as_json: bool) -> None:
    """Prints a plan: the derived numbers, the memory of a device, the batch that fits, and hours."""
    if as_json:
        typer.echo(json.dumps(plan_document(found), indent=2))
        return
    rows = [*_derived_rows(found.derived), Row("", ""), *_memory_rows(found), Row("", ""), *_time_rows(found)]
    typer.echo(_aligned(rows))


def plan_document(found: Plan) -> dict[str, Any]:
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


def _derived_rows(derived: Derived) -> Iterator[Row]:
    amounts, sizes = derived.schedule, derived.sizes
    yield _parameter_row(derived)
    samples = f"{_count(sizes.global_batch_size)} samples x {_count(amounts.seq_len)}"
    yield Row("tokens per step", _count(amounts.tokens_per_step), samples)
    ranks = f"{amounts.dp_ranks} data-parallel rank{'' if amounts.dp_ranks == 1 else 's'}"
    to_find = sizes.finds_local_batch and sizes.local_batch_size is None
    batch = "auto" if to_find else _count(sizes.local_batch_size)
    shared = f"{_count(sizes.global_batch_size)} samples / ({batch} x {ranks})"
    yield Row("gradient accumulation", "auto" if to_find else _count(amounts.accumulation), shared)
    yield Row("steps", _count(amounts.steps))
    yield Row("tokens in the run", _count(amounts.tokens))
    if amounts.tokens_per_parameter is not None:
        best = "about 20 make the best of the compute (Hoffmann et al. 2022)"
        yield Row("tokens per parameter", f"{amounts.tokens_per_parameter:.3g}", best)
    if amounts.epochs is not None:
        yield Row("epochs", f"{amounts.epochs:.3g}", f"of {_count(amounts.data_tokens)} tokens of data")
    if derived.flops_per_token is not None:
        how = "counted in a trace" if derived.model and derived.model.is_traced else "6N + 12LCT"
        yield Row("FLOPs per token", _scientific(derived.flops_per_token), f"{how}, forward and backward")
    if derived.flops is not None:
        yield Row("FLOPs of the run", _scientific(derived.flops))


def _parameter_row(derived: Derived) -> Row:
    counts, model = derived.parameters, derived.model
    if counts is None or model is None:
        return Row("parameters", _NOT_KNOWN, derived.unknown or "")
    head = "also the output" if model.is_tied else f"output {counts.head:,}"
    parts = [f"embedding {counts.embedding:,} ({head})" if model.is_tied else f"embedding {counts.embedding:,}, {head}"]
    if counts.positions:
        parts.append(f"positions {counts.positions:,}")
    parts.append(f"blocks {model.num_layers} x {counts.blocks // model.num_layers:,}")
    return Row("parameters", f"{counts.total:,}", f"{model.kind}: {', '.join(parts)}")


def _memory_rows(found: Plan) -> Iterator[Row]:
    sizes, batch = found.derived.sizes, found.derived.sizes.local_batch_size
    degrees = sizes.degrees
    found_here = " for auto" if sizes.finds_local_batch else ""
    split = ", ".join(f"{name} {size}" for name, size in dataclasses.asdict(degrees).items() if size > 1)
    yield Row("devices", str(found.world_size), f"{_strategy(found)}{': ' if split else ''}{split}")
    yield Row(
        "memory of a device",
        "",
        f"local batch {_count(batch)}{found_here}, {'bf16' if sizes.is_bf16 else 'fp32'}, upper bound",
    )
    if found.memory is None:
        why = found.derived.unknown or "the configuration has no batch size or no length of samples"
        yield Row("  total", _NOT_KNOWN, why)
        return
    for name, size in dataclasses.asdict(found.memory).items():
        yield Row(f"  {name}", _size(size), _MEMORY_NOTES[name] if size is not None else _why_not(name))
    kept = f"of {_size(found.gpu_memory)}, {RESERVED_SHARE:.0%} of it kept for what is not counted"
    verdict = {True: "fits: ", False: "does not fit: ", None: ""}[found.fits]
    yield Row("  total", _size(found.memory.total), f"{verdict}{kept}")
    yield _batch_row(found)


def _batch_row(found: Plan) -> Row:
    """The largest batch, and the largest that divides what a rank has to do in a step."""
    largest, divisor = found.largest_local_batch, found.largest_divisor
    samples = found.derived.sizes.global_batch_size
    if largest is None or divisor is None or samples is None:
        return Row("largest local batch", _count(largest))
    per_rank = f"{samples // found.derived.sizes.degrees.dp:,} samples of a rank"
    note = f"{divisor:,} divides the {per_rank}" if divisor else f"no number that divides the {per_rank} fits"
    return Row("largest local batch", f"{largest:,}", note)


def _time_rows(found: Plan) -> Iterator[Row]:
    if found.peak_flops is None:
        why = f"the peak of {found.device.name} is for bf16, and the run is not: give --peak-tflops"
        yield Row("time", _NOT_KNOWN, why)
        return
    name = f" of {found.device.name}" if found.peak_flops == found.device.peak_flops else ""
    peak = f"{found.world_size} x {found.peak_flops / 1e12:,.0f} TFLOP/s{name} x {found.mfu:.0%} utilisation"
    hours = _NOT_KNOWN if found.hours is None else _duration(found.hours)
    yield Row("time", hours, peak)


def _why_not(category: str) -> str:
    if category == "optimizer":
        return "the state of this optimizer is not known here"
    return "attention holds T x T scores or masks, whose size depends on its kernel"


def _strategy(found: Plan) -> str:
    sizes = found.derived.sizes
    if sizes.degrees.world == 1 and not sizes.uses_fsdp:
        return "one process"
    return sizes.distributed.chosen_strategy() or "fsdp2"


def _aligned(rows: Iterator[Row] | list[Row]) -> str:
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
