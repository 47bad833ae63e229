"""How `inspect-ckpt` shows tensors: as a tree, with statistics, or compared with those of another place."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from automodel_cli.commands import columns
from automodel_cli.commands.columns import printable
from automodel_cli.engine.bounded import finite
from automodel_cli.engine.checkpoint.checkpoint_report import count_parameters
from automodel_cli.engine.checkpoint.stored_tensors import TensorInfo

if TYPE_CHECKING:
    from automodel_cli.engine.checkpoint.foreign import ForeignTensors
    from automodel_cli.engine.checkpoint.tensor_values import TensorDifferences, TensorStats
    from automodel_cli.engine.config.emit import Change

_BARS = " ▁▂▃▄▅▆▇█"


def summary(path: str, found: ForeignTensors, *, as_json: bool) -> None:
    """Prints what lies in a place that is not a checkpoint of amcli."""
    count = count_parameters(found.tensors, found.config)
    if as_json:
        tensors = {name: {"dtype": info.dtype, "shape": list(info.shape)} for name, info in found.tensors.items()}
        document = {
            "path": path,
            "kind": found.kind,
            "verdict": "weights only",
            "parameters": {
                "total": count.total,
                "by_component": count.by_component,
                "by_dtype": count.by_dtype,
                "tied_head": count.tied_head,
            },
            "tensors": tensors,
        }
        typer.echo(json.dumps(document, indent=2))
        return
    typer.echo(printable(path))
    verdict = f"WEIGHTS ONLY: a {found.kind}; headers were read, and nothing in it was run"
    typer.echo("\n".join(columns.wrapped(verdict, columns.room(), "  ")) + "\n")
    architecture = (found.config or {}).get("architectures")
    rows = [("architecture", printable(", ".join(map(str, architecture))))] if isinstance(architecture, list) else []
    rows.append(("parameters", f"{count.total:,} in {count.num_tensors:,} tensors"))
    rows += [(f"  {name}", f"{number:,}") for name, number in count.by_component.items()]
    rows += [("types", ", ".join(f"{number:,} {dtype}" for dtype, number in count.by_dtype.items()))]
    columns.show(rows, text=[1])


def tree(tensors: Mapping[str, TensorInfo]) -> None:
    """Prints the names as a tree, with type, shape and number of parameters."""
    root: dict[str, Any] = {}
    for name, info in tensors.items():
        *places, last = name.split(".")
        node = root
        for place in places:
            inner = node.setdefault(place, {})
            node = inner if isinstance(inner, dict) else node.setdefault(f"{place}.", {})
        node[last] = info
    rows: list[tuple[str, str]] = []
    _branch(root, "", rows)
    columns.show(rows)


def _branch(node: Mapping[str, Any], indent: str, rows: list[tuple[str, str]]) -> None:
    names = list(node)
    for name in names:
        is_last = name == names[-1]
        label = f"{indent}{'└ ' if is_last else '├ '}{printable(name)}"
        inner = node[name]
        if isinstance(inner, TensorInfo):
            rows.append((label, f"{inner.dtype} {_shape(inner.shape)}"))
        else:
            rows.append((label, f"{_elements(inner):,}"))
            _branch(inner, indent + ("  " if is_last else "│ "), rows)


def _elements(node: Any) -> int:
    return node.num_elements if isinstance(node, TensorInfo) else sum(map(_elements, node.values()))


def statistics(all_stats: Sequence[TensorStats], warnings: Sequence[str], *, as_json: bool) -> None:
    """Prints statistics, one tensor a line, then what looks wrong."""
    if as_json:
        document = {"tensors": [vars(stats) for stats in all_stats], "warnings": list(warnings)}
        typer.echo(json.dumps(finite(document), indent=2, allow_nan=False))
        return
    header = ("tensor", "type", "shape", "min", "max", "mean", "rms", "NaN", "Inf", "histogram")
    rows = [
        (
            printable(stats.name),
            stats.dtype,
            _shape(stats.shape),
            *map(_number, (stats.minimum, stats.maximum, stats.mean, stats.rms)),
            f"{stats.num_nan:,}",
            f"{stats.num_inf:,}",
            _bars(stats.histogram),
        )
        for stats in all_stats
    ]
    # The columns that show a fault stay longest: name, NaN, Inf and max.
    columns.show([header, *rows], first_to_go=(9, 1, 2, 5, 3, 6, 4))
    for warning in warnings:
        typer.echo("\n".join(columns.wrapped(f"warning: {printable(warning)}", columns.room())))


def differences(found: TensorDifferences, changes: Sequence[Change], *, as_json: bool) -> None:
    """Prints what differs between two places: configuration, names, shapes, and how far each layer moved."""
    if as_json:
        document = {**vars(found), "config": [{"key": c.key, "old": c.old, "new": c.new} for c in changes]}
        typer.echo(json.dumps(finite(document), indent=2, default=list))
        return
    for change in changes:
        typer.echo(printable(f"config  {change}"))
    for label, lines in (("only in the first ", found.only_old), ("only in the second", found.only_new)):
        for line in lines:
            typer.echo(f"{label}  {printable(line)}")
    for line in found.reshaped:
        typer.echo(f"differs  {printable(line)}")
    if found.change_by_layer:
        rows = [("layer", "relative change")]
        rows += [(printable(layer), f"{change:.3g}") for layer, change in found.change_by_layer.items()]
        columns.show(rows)
    typer.echo(f"{found.unchanged:,} tensors have equal values")
    if found.uncompared:
        typer.echo(f"{len(found.uncompared):,} tensors could not be compared by value: only safetensors files can")


def _shape(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _bars(counts: Sequence[int]) -> str:
    most = max(counts, default=0)
    # A bin that is not empty shows at least one eighth, even next to a huge one.
    return "".join(_BARS[0 if not count else max(1, round(8 * count / most))] for count in counts)
