"""How the output of `amcli config` looks: aligned text, dimmed only on a terminal, or JSON with stable keys."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

import typer

from automodel_cli.commands import columns
from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.emit import ABSENT, Change, flat, inline, label, printable, to_flat, to_yaml
from automodel_cli.engine.config.secrets import masked_message
from automodel_cli.errors import AmcliError

if TYPE_CHECKING:
    from automodel_cli.engine.config.keys import Explanation
    from automodel_cli.engine.config.settings import Settings
    from automodel_cli.engine.plan.derive import Derived


class Format(StrEnum):
    """The forms of a configuration as output."""

    YAML = "yaml"
    TABLE = "table"
    JSON = "json"
    FLAT = "flat"


def configuration(config: Config, form: Format, *, origins: bool, derived: Derived | None = None) -> None:
    """Prints a configuration, the origin of each value beside it, and at the end what follows from it.

    Args:
        config: What to print.
        form: Only JSON and YAML (as comments) hold what follows from it.
        origins: Print where values came from.
        derived: What follows from it; None to leave it out.
    """
    if derived is not None:
        from automodel_cli.commands.plan import derived_document, derived_text
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
        _table(("key", "old", "new", "old origin", "new origin"), rows, first_to_go=(3, 4))
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
        typer.echo("\n".join(columns.wrapped(head + shown, columns.room(), " " * len(head))))


def verdict(source: str, *, problems: Sequence[AmcliError] = (), settings: Settings | None = None) -> None:
    """Prints as JSON whether a configuration is sound, everything that is wrong, and what was not checked."""
    listed = [
        {
            "where": found.where,
            "message": masked_message(found.message),
            "help": found.help and masked_message(found.help),
        }
        for found in problems
    ]
    unchecked = settings.unchecked if settings else ()
    document = {
        "config": source,
        "ok": not problems,
        "problems": listed,
        "checks": settings.num_checks if settings else None,
        "not_checked": [{"what": each.what, "why": each.why} for each in unchecked],
        "notes": list(map(masked_message, settings.notes)) if settings else [],
    }
    typer.echo(json.dumps(document, indent=2))


def _side(value: object, origin: str | None) -> dict[str, object] | None:
    return None if origin is None else {"value": value, "origin": origin}


def _shown(value: object) -> str:
    return ABSENT if value == ABSENT else inline(value)


def _dim(text: str) -> str:
    return columns.styled(text, columns.DIM)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, first_to_go: Sequence[int] = ()) -> None:
    columns.show([header, *rows], first_to_go=first_to_go, style=lambda row, column: columns.DIM if not row else "")
