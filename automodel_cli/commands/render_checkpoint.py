"""How `inspect-ckpt` looks: aligned text, with colour only on a terminal.

Text from a checkpoint is untrusted: its control characters are shown as escapes and never reach the terminal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeGuard

import typer

from automodel_cli.commands import columns
from automodel_cli.commands.columns import printable
from automodel_cli.engine.checkpoint.checkpoint_report import CheckpointReport, ParameterCount, RunReport

_VERDICT = 6  # its column in the table of a run
_COLOURS = {
    "resumable": columns.GREEN,
    "weights only": columns.CYAN,
    "incomplete": columns.YELLOW,
    "corrupt": columns.RED,
}


def report(found: CheckpointReport | RunReport, *, as_json: bool) -> None:
    """Prints one checkpoint, or the list of a run's checkpoints."""
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2, allow_nan=False))
    elif isinstance(found, CheckpointReport):
        _checkpoint(found)
    else:
        _run(found)


def _checkpoint(found: CheckpointReport) -> None:
    marks = f"  ({', '.join(found.marks)})" if found.marks else ""
    typer.echo(columns.styled(printable(found.path) + marks, columns.BOLD))
    _say(_verdict(found), columns.BOLD + ";" + _COLOURS[found.verdict], only=found.verdict.upper())
    for problem in found.problems:
        _say(f"  {printable(problem)}", columns.RED)
    for note in found.notes:
        _say(f"  note: {printable(note)}", columns.DIM)
    typer.echo()
    _grid(_progress_rows(found))
    if found.parameters is not None:
        _components(found.parameters)
    if found.files:
        _files(found)
    if found.config:
        _title("configuration")
        # Numbers without thousands separators, so that they can be copied into YAML.
        _grid([(key, str(value)) for key, value in found.config.items()])


def _say(text: str, code: str, *, only: str | None = None) -> None:
    """Prints a sentence in a style; with `only`, just these first words have the style."""
    for line in columns.wrapped(text, columns.room(), "  "):
        begin = only if only and line.startswith(only) else line if only is None else ""
        typer.echo(columns.styled(begin, code) + line.removeprefix(begin))


def _verdict(found: CheckpointReport) -> str:
    depth = {
        "resumable": "",
        "weights only": "nothing to resume from was saved; checkpoint.init_from starts a run with them. ",
        "incomplete": "something is missing",
        "corrupt": "something is not as it was saved",
    }[found.verdict]
    if found.is_sound:
        depth += (
            "every byte is as it was saved"
            if found.verified
            else "sizes and headers are as they were saved; --verify also reads every byte"
        )
    return f"{found.verdict.upper()}: {depth}"


def _progress_rows(found: CheckpointReport) -> list[tuple[str, Any]]:
    progress = found.progress
    rows: list[tuple[str, Any]] = [("step", found.step), ("tokens", progress.get("tokens_seen"))]
    rows.append(("loss", _nats(progress.get("loss"))))
    rows.append(("val_loss", _validation(progress)))
    rows.append(("lr", _number(progress.get("lr"), ".3e") if progress.get("lr") is not None else None))
    if found.parameters is not None:
        count = found.parameters
        tied = "; the output layer is the token embedding" if count.tied_head else ""
        rows.append(("parameters", f"{count.total:,} {_types(count.by_dtype)} in {count.num_tensors} tensors{tied}"))
    if found.optimizer_dtypes:
        rows.append(("optimizer", f"{sum(found.optimizer_dtypes.values()):,} values {_types(found.optimizer_dtypes)}"))
    rows.append(("shards", _balance(found.rank_bytes)))
    rows.append(("saved", f"{_moment(found.saved_at)} by amcli {found.amcli_version}" if found.saved_at else None))
    for name, value in found.facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        rows.append((name, value))
    return [(name, value) for name, value in rows if value is not None]


def _balance(rank_bytes: dict[int, int]) -> str | None:
    """How evenly the ranks share the writing: the rank that writes most decides how long a save takes."""
    if not rank_bytes:
        return None
    sizes = sorted(rank_bytes.values())
    even = sum(sizes) / len(sizes)
    span = f"{sizes[0]:,} to {sizes[-1]:,} bytes"
    return f"of {len(sizes)} ranks, {span}; the largest is {sizes[-1] / even:.2f} of an even part"


def _moment(iso: str) -> str:
    return iso.replace("T", " ").replace("+00:00", " UTC")


def _nats(value: Any) -> Any:
    return f"{value:.4f} nats per token" if _is_number(value) else value


def _validation(progress: dict[str, Any]) -> Any:
    loss, best = progress.get("val_loss"), progress.get("best_val_loss")
    if not _is_number(loss):
        return loss
    # exp overflows a float at 709.
    perplexity = f"perplexity {math.exp(loss):,.2f}" if loss < 700 else "perplexity beyond 1e304"
    return f"{_nats(loss)}, {perplexity}" + (f"; best {best:.4f}" if _is_number(best) else "")


def _types(dtypes: dict[str, int]) -> str:
    if len(dtypes) == 1:
        return next(iter(dtypes))
    return "(" + ", ".join(f"{count:,} {dtype}" for dtype, count in dtypes.items()) + ")"


def _title(text: str) -> None:
    typer.echo()
    typer.echo(columns.styled(text, columns.BOLD))


def _components(count: ParameterCount) -> None:
    _title("parameters by component")
    rows = [
        (f"  {name}", f"{number:,}", f"{number / max(count.total, 1):.1%}")
        for name, number in count.by_component.items()
    ]
    _table([("  component", "number", "share"), *rows], right=(1, 2), first_to_go=(2,))


def _files(found: CheckpointReport) -> None:
    _title("files")
    rows = [(f"  {printable(name)}", f"{num_bytes:,}") for name, num_bytes in found.files.items()]
    _table([("  file", "bytes"), *rows, ("  total", f"{found.total_bytes:,}")], right=(1,))


def _run(found: RunReport) -> None:
    rows = [("  checkpoint", "loss", "val_loss", "tokens", "bytes", "saved", "verdict", "")]
    for report in found.checkpoints:
        progress = report.progress
        rows.append(
            (
                f"  {printable(report.path.rpartition('/')[2])}",
                _number(progress.get("loss"), ".4f"),
                _number(progress.get("val_loss"), ".4f"),
                _number(progress.get("tokens_seen"), ","),
                f"{report.total_bytes:,}",
                printable(_moment(report.saved_at or "-")),
                report.verdict,
                ", ".join(report.marks),
            )
        )
    typer.echo(columns.styled(printable(found.path), columns.BOLD))
    verdicts = {number: _COLOURS[report.verdict] for number, report in enumerate(found.checkpoints, start=1)}
    # The name and the verdict stay longest.
    _table(rows, right=(1, 2, 3, 4), first_to_go=(5, 4, 3, 1, 2, 7), colours=verdicts)
    for report in found.checkpoints:
        for problem in report.problems:
            _say(printable(f"{report.path}: {problem}"), columns.RED)
    for note in found.notes:
        _say(f"note: {printable(note)}", columns.DIM)


def _number(value: Any, form: str) -> str:
    return format(value, form) if _is_number(value) else "-"


def _is_number(value: Any) -> TypeGuard[int | float]:
    # Integers in JSON have no limit, and formatting one beyond the range of a float raises.
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def _grid(rows: list[tuple[str, Any]]) -> None:
    cells = [
        (f"  {printable(name)}", printable(f"{value:,}" if type(value) is int else str(value))) for name, value in rows
    ]
    columns.show(cells, text=[1], style=lambda row, column: columns.DIM if column == 0 else "")


def _table(
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[int],
    first_to_go: Sequence[int] = (),
    colours: Mapping[int, str] | None = None,
) -> None:
    """Prints a table with a header; `colours` are those of the verdicts, by row."""

    def style(row: int, column: int) -> str:
        if row == 0:
            return columns.DIM
        return (colours or {}).get(row, "") if column == _VERDICT else ""

    columns.show(rows, right=right, first_to_go=first_to_go, style=style)
