"""How `inspect-ckpt` looks: aligned text, with colour only on a terminal.

What a checkpoint says about itself is untrusted: control characters are shown as escapes and
never reach the terminal.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import sys
from typing import Any, TypeGuard

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from automodel_cli.engine.checkpoint.inspect_run import RunReport
from automodel_cli.engine.checkpoint.report import CheckpointReport

_COLOURS = {"resumable": "green", "weights only": "cyan", "incomplete": "yellow", "corrupt": "red"}
# A pipe has no width; wrapping there would cut paths that scripts look for.
_PIPE_WIDTH = 200
_PADDING = re.compile(r" +$", re.MULTILINE)


def report(found: CheckpointReport | RunReport, *, as_json: bool) -> None:
    """Prints one checkpoint, or the list of a run's checkpoints."""
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2, allow_nan=False))
    elif isinstance(found, CheckpointReport):
        _checkpoint(found, _console())
    else:
        _run(found, _console())


def _console() -> Console:
    live = sys.stdout.isatty()
    out = None if live else _Trimmed()
    # Said outright, since rich would also follow FORCE_COLOR and then write codes into a pipe.
    width = None if live or os.environ.get("COLUMNS") else _PIPE_WIDTH
    return Console(file=out, force_terminal=live, width=width, highlight=False, markup=False, emoji=False)


class _Trimmed(io.StringIO):
    """Standard output without the spaces that tables pad their lines with."""

    def write(self, text: str) -> int:
        return sys.stdout.write(_PADDING.sub("", text))

    def flush(self) -> None:
        sys.stdout.flush()


def _checkpoint(found: CheckpointReport, console: Console) -> None:
    marks = f"  ({', '.join(found.marks)})" if found.marks else ""
    console.print(Text(printable(found.path) + marks, "bold"))
    console.print(_verdict(found))
    for problem in found.problems:
        console.print(Text(f"  {printable(problem)}", "red"))
    for note in found.notes:
        console.print(Text(f"  note: {printable(note)}", "dim"))
    console.print()
    console.print(_grid(_progress_rows(found)))
    if found.parameters is not None:
        console.print()
        console.print(_components(found))
    if found.files:
        console.print()
        console.print(_files(found))
    if found.config:
        console.print()
        # As it stands in the YAML: a seed with a comma in it could not be copied.
        console.print(_grid([(key, str(value)) for key, value in found.config.items()], title="configuration"))


def _verdict(found: CheckpointReport) -> Text:
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
    return Text.assemble((found.verdict.upper(), f"bold {_COLOURS[found.verdict]}"), f": {depth}")


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
    """How evenly the ranks share what they write: the largest part decides how long a save takes."""
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


def _components(found: CheckpointReport) -> Table:
    table = _table("parameters by component", "component", ("number", "right"), ("share", "right"))
    count = found.parameters
    for name, number in count.by_component.items() if count else ():
        table.add_row(name, f"{number:,}", f"{number / max(count.total, 1):.1%}" if count else "")
    return table


def _files(found: CheckpointReport) -> Table:
    table = _table("files", "file", ("bytes", "right"))
    for name, num_bytes in found.files.items():
        table.add_row(printable(name), f"{num_bytes:,}")
    table.add_row("total", f"{found.total_bytes:,}", style="bold")
    return table


def _run(found: RunReport, console: Console) -> None:
    table = _table(
        None,
        "checkpoint",
        *((name, "right") for name in ("loss", "val_loss", "tokens", "bytes")),
        ("saved", "left"),
        ("verdict", "left"),
        ("", "left"),
    )
    for report in found.checkpoints:
        progress = report.progress
        table.add_row(
            printable(report.path.rpartition("/")[2]),
            _number(progress.get("loss"), ".4f"),
            _number(progress.get("val_loss"), ".4f"),
            _number(progress.get("tokens_seen"), ","),
            f"{report.total_bytes:,}",
            printable(_moment(report.saved_at or "-")),
            Text(report.verdict, _COLOURS[report.verdict]),
            ", ".join(report.marks),
        )
    console.print(Text(printable(found.path), "bold"))
    console.print(table)
    for report in found.checkpoints:
        for problem in report.problems:
            console.print(Text(printable(f"{report.path}: {problem}"), "red"))
    for note in found.notes:
        console.print(Text(f"note: {printable(note)}", "dim"))


def _number(value: Any, form: str) -> str:
    return format(value, form) if _is_number(value) else "-"


def _is_number(value: Any) -> TypeGuard[int | float]:
    # JSON has integers without end, and formatting one beyond a float's range raises.
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def _grid(rows: list[tuple[str, Any]], title: str | None = None) -> Table:
    table = Table(
        box=None, show_header=False, title=title, title_justify="left", title_style="bold", padding=(0, 0, 0, 2)
    )
    for name, value in rows:
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
        table.add_row(Text(printable(name), "dim"), Text(printable(shown)))
    return table


def _table(title: str | None, first: str, *others: tuple[str, Any]) -> Table:
    table = Table(
        box=None, title=title, title_justify="left", title_style="bold", header_style="dim", padding=(0, 0, 0, 2)
    )
    table.add_column(first, overflow="fold")
    for name, justify in others:
        table.add_column(name, justify=justify)
    return table


def printable(text: str) -> str:
    r"""`text` with every character that could steer a terminal shown as an escape.

    >>> printable("a\x1b[2J")
    'a\\x1b[2J'
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in text
    )
