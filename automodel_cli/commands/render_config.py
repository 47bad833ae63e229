"""How `amcli config` looks: aligned text, dimmed only on a terminal, or JSON with stable keys.

Widths are those of the terminal, or of COLUMNS; a pipe without COLUMNS gets every line whole.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

import typer

from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.diff import ABSENT, Change
from automodel_cli.engine.config.emit import flat, inline, label, printable, to_flat, to_yaml
from automodel_cli.engine.config.secrets import masked_message
from automodel_cli.errors import AmcliError

if TYPE_CHECKING:
    from automodel_cli.engine.config.explain import Explanation
    from automodel_cli.engine.plan.derive import Derived

_LEAST = 8  # characters that a column keeps in however narrow a terminal


class Format(StrEnum):
    """The forms of a configuration as output."""

    YAML = "yaml"
    TABLE = "table"
    JSON = "json"
    FLAT = "flat"


def configuration(config: Config, form: Format, *, origins: bool, derived: Derived | None = None) -> None:
    """Prints a configuration, beside each value where it came from, and at the end what follows from it.

    Args:
        config: What to print.
        form: How. What follows from it stands in JSON and, as comments, in YAML; the others are one value a line.
        origins: Whether to say where values came from.
        derived: What follows from it, if that is to be said.
    """
    if derived is not None:
        from automodel_cli.commands.render_plan import derived_document, derived_text
    if form is Format.JSON:
        document: dict[str, object] = {"config": config.values}
        if origins:
            document["origins"] = {key: str(origin) for key, _, origin in flat(config)}
        if derived is not None:
            document["derived"] = derived_document(derived)
        typer.echo(json.dumps(document, indent=2))
    elif form is Format.TABLE:
        rows = [(key, inline(value), label(config, key, value)) for key, value, _ in flat(config)]
        _table(("key", "value", "origin"), rows) if origins else _table(("key", "value"), [row[:2] for row in rows])
    else:
        text = to_flat if form is Format.FLAT else to_yaml
        typer.echo(text(config, origins=origins, note=_dim), nl=False)
        if derived is not None and form is Format.YAML:
            lines = ["derived", *(f"  {line}" for line in derived_text(derived).splitlines())]
            typer.echo("\n".join(_dim(f"# {line}") for line in lines))


def differences(changes: Sequence[Change], *, as_json: bool) -> None:
    """Prints each key that differs, with both values and both origins."""
    if as_json:
        sides = [
            {
                "key": change.key,
                "old": _side(change.old, change.old_origin),
                "new": _side(change.new, change.new_origin),
            }
            for change in changes
        ]
        typer.echo(json.dumps({"differences": sides}, indent=2))
    elif changes:
        rows = [(c.key, _shown(c.old), _shown(c.new), c.old_origin or "", c.new_origin or "") for c in changes]
        _table(("key", "old", "new", "old origin", "new origin"), rows)
    else:
        typer.echo("no key differs")


def explanation(found: Explanation, *, as_json: bool) -> None:
    """Prints what a key means, one fact a line."""
    facts = dataclasses.asdict(found)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    facts["keys"] = ", ".join(found.keys) or None
    typer.echo(facts.pop("key"))
    origin = facts.pop("origin")
    for name, fact in facts.items():
        if fact is None:
            continue
        text = printable(str(fact))
        shown = f"{text}  {_dim(f'# {origin}')}" if name == "value" and origin else text
        head = f"  {name.replace('_', ' '):<9}"
        width = _width()
        lines = textwrap.wrap(shown, width, initial_indent=head, subsequent_indent=" " * len(head)) if width else []
        typer.echo("\n".join(lines) if lines else head + shown)


def verdict(source: str, *, problems: Sequence[AmcliError] = (), notes: Sequence[str] = ()) -> None:
    """Prints as JSON whether a configuration is sound, everything that is wrong, and what was not checked."""
    listed = [
        {
            "where": found.where,
            "message": masked_message(found.message),
            "help": found.help and masked_message(found.help),
        }
        for found in problems
    ]
    document = {"config": source, "ok": not problems, "problems": listed, "notes": list(map(masked_message, notes))}
    typer.echo(json.dumps(document, indent=2))


def _side(value: object, origin: str | None) -> dict[str, object] | None:
    return None if origin is None else {"value": value, "origin": origin}


def _shown(value: object) -> str:
    return ABSENT if value == ABSENT else inline(value)


def _dim(text: str) -> str:
    return f"\x1b[2m{text}\x1b[0m" if _is_terminal() and not os.environ.get("NO_COLOR") else text


def _is_terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def _width() -> int | None:
    """Columns to keep to; None where nothing limits them."""
    return shutil.get_terminal_size().columns if _is_terminal() or os.environ.get("COLUMNS") else None


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints aligned columns; where they are too wide, the widest are cut, with an ellipsis."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    limit, gaps = _width(), 2 * (len(widths) - 1)
    while limit is not None and sum(widths) + gaps > limit and max(widths) > _LEAST:
        widths[widths.index(max(widths))] -= 1
    for number, row in enumerate([header, *rows]):
        line = "  ".join(f"{_cut(text, width):<{width}}" for text, width in zip(row, widths, strict=True)).rstrip()
        typer.echo(_dim(line) if number == 0 else line)
