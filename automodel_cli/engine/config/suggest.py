"""The nearest right name for a mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, candidates: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The candidate that `name` was most likely meant to be, or None if none is alike by `cutoff` of 1.

    >>> nearest("n_layers", ["n_layer", "n_head"])
    'n_layer'
    """
    matches = difflib.get_close_matches(name, list(candidates), n=1, cutoff=cutoff)
    return matches[0] if matches else None


def hint(name: str, candidates: Iterable[str], *, noun: str = "keys") -> str:
    """A help line: the nearest name if there is one, else the names that exist."""
    names = sorted(candidates)
    match = nearest(name, names)
    if match:
        return f"did you mean `{match}`?"
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"the {noun} are: {shown}" if names else f"there are no {noun} here"
