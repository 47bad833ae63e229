"""Takes out of a piece's rows what cannot be a document, and says why.

The usual piece has nothing bad in it; that is found without looking at any text as a Python object.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from automodel_cli.engine.prep.corpus.foreign import not_utf8
from automodel_cli.engine.prep.corpus.pieces import Rows

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class CleanTexts:
    """The documents of a piece.

    Attributes:
        texts: `large_string`, no nulls.
        skipped: Rows left out, by reason.
        first: The first row left out for each reason, in order: its number, and what was found there.
    """

    texts: pa.LargeStringArray
    skipped: Mapping[str, int]
    first: Mapping[str, tuple[int, str]]

    @property
    def first_bad(self) -> tuple[int, str] | None:
        """Number of the first row left out, and the reason; `None` when there is none."""
        return next(((number, reason) for reason, (number, _) in self.first.items()), None)


def clean(rows: Rows, max_document_bytes: int) -> CleanTexts:
    r"""The rows that are documents: not null, not blank, valid UTF-8, at most so many bytes.

    >>> import pyarrow as pa
    >>> found = clean(Rows(pa.array([b"a", None, b" ", b"caf\xe9"]), lambda row: row + 1), 10)
    >>> found.texts.to_pylist(), found.first_bad
    (['a'], (2, 'null'))
    """
    import pyarrow as pa

    content = everything = rows.texts.cast(pa.large_binary())
    reasons = dict(rows.rejected)
    if content.null_count or _any_longer(content, max_document_bytes):
        reasons |= _unfit(content, max_document_bytes, reasons)
        content = _without(content, reasons)
    kept = [row for row in range(len(rows.texts)) if row not in reasons] if reasons else None
    try:
        texts = content.cast(pa.large_string())
    except pa.ArrowInvalid:
        broken = {row: why_not_utf8(value.as_py()) for row, value in enumerate(content)}
        broken = {row: why for row, why in broken.items() if why}
        texts = _without(content, broken).cast(pa.large_string())
        reasons |= {_original(kept, row): why for row, why in broken.items()}
        kept = [row for row in range(len(rows.texts)) if row not in reasons]
    blank = _blank_rows(texts)
    if blank:
        texts = _without(texts, dict.fromkeys(blank, ""))
        reasons |= {_original(kept, row): "empty" for row in blank}
    first: dict[str, int] = {}
    for row in sorted(reasons):
        first.setdefault(reasons[row], row)
    found = {
        reason: (rows.number(row), rows.found.get(row) or _found(reason, everything[row].as_buffer(), rows.unit))
        for reason, row in first.items()
    }
    return CleanTexts(texts, Counter(reasons.values()), found)


def _found(reason: str, content: pa.Buffer | None, unit: str) -> str:
    """What is in a row that is no document, where that says more than the reason."""
    if content is None:
        return ""
    if reason == "too_large":
        return f"{content.size:,} bytes {unit}".rstrip()
    return not_utf8(content.to_pybytes()) if reason == "invalid_utf8" else ""


def _any_longer(content: pa.LargeBinaryArray, limit: int) -> bool:
    import pyarrow.compute as pc

    longest = pc.max(pc.binary_length(content)).as_py()
    return longest is not None and longest > limit


def _unfit(content: pa.LargeBinaryArray, limit: int, known: Mapping[int, str]) -> dict[int, str]:
    import pyarrow.compute as pc

    found = {}
    for row, length in enumerate(pc.binary_length(content).to_pylist()):
        if length is None:
            found[row] = "null"
        elif length > limit:
            found[row] = "too_large"
    return {row: reason for row, reason in found.items() if row not in known}


def _blank_rows(texts: pa.LargeStringArray) -> list[int]:
    """Rows without a character that is not white space, in the sense of `str.isspace`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    # Arrow calls a text of no characters no space. To compare it with a 0, it would import pandas first.
    is_empty = pc.invert(pc.cast(pc.binary_length(texts), pa.bool_()))
    blank = pc.or_(pc.utf8_is_space(texts), is_empty)
    if not pc.any(blank).as_py():
        return []
    rows: list[int] = pc.indices_nonzero(blank).to_pylist()
    return rows


def _without(values: pa.Array, rows: Mapping[int, str]) -> pa.Array:
    import pyarrow as pa

    return values.take(pa.array([row for row in range(len(values)) if row not in rows], pa.int64()))


def _original(kept: list[int] | None, row: int) -> int:
    return row if kept is None else kept[row]


def why_not_utf8(value: bytes) -> str:
    """Why these bytes are no UTF-8; empty when they are."""
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return "lone_surrogate" if _holds_surrogates(value) else "invalid_utf8"
    return ""


def _holds_surrogates(value: bytes) -> bool:
    try:
        value.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True
