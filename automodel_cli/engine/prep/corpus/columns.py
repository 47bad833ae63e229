"""The column that holds the text, and what is said where there is none."""

from __future__ import annotations

from collections.abc import Iterable

from automodel_cli.engine.config.suggest import nearest
from automodel_cli.errors import DataError


def missing_column(column: str, columns: Iterable[str], where: str, inside: Iterable[str] = ()) -> DataError:
    """The error for a file without the column: it names those that there are.

    Args:
        column: What was asked for.
        columns: What the file has.
        where: The file.
        inside: Fields inside its columns, by their dotted paths.
    """
    names, fields = sorted(columns), sorted(inside)
    # A field of this very name is meant rather than one that looks like it.
    same = sorted((field for field in fields if field.endswith(f".{column}")), key=lambda field: field.count("."))
    return DataError(
        f"there is no column {column!r}; the columns are {', '.join(names) or 'none'}",
        where=where,
        help=name_with("--text-column", same[0] if same else column, [*names, *fields]),
    )


def repeated_column(column: str, times: int, where: str) -> DataError:
    """The error for a file in which the name of the column stands several times."""
    return DataError(
        f"the column {column!r} stands {times} times in the file",
        where=where,
        help="give the columns different names, and name the one that holds the text with --text-column",
    )


def name_with(option: str, name: str, candidates: Iterable[str]) -> str:
    """The help for a name that is none of the candidates, which the message lists.

    >>> name_with("--split", "trian", ["train"]), name_with("--split", "dev", ["train"])
    ('did you mean `train`? Name it with --split', 'name one with --split')
    """
    match = nearest(name, candidates)
    return f"did you mean `{match}`? Name it with {option}" if match else f"name one with {option}"


def not_text(column: str, found: str, where: str) -> DataError:
    """The error for a column that holds something else than text."""
    return DataError(f"the column {column!r} holds {found}, not text", where=where, help="name another --text-column")
