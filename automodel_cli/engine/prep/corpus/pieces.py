"""What a reader of one file gives: pieces, each with the position behind it and rows parsed on demand.

Pieces form a chain: where one ends depends only on where it began. So a reading that starts at a
position has the same pieces as one that came by, in whatever process it happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import pyarrow as pa

# Numbers, the first of which counts the pieces of the file before it; the others mean what the reader wants.
# A source of the user's own code puts its state behind them, as text.
Position = tuple[Any, ...]
# Bytes of a stretch of text that is read and parsed at once.
PIECE_BYTES = 1 << 22
# Documents of a stretch of rows.
PIECE_ROWS = 1024


@dataclass(frozen=True)
class Rows:
    """The rows of a piece, not yet looked at.

    Attributes:
        texts: Strings or bytes, null where a row has no text.
        number: The number that a user would give the row with this index: a line or a row from 1.
        rejected: Why the reader could not give the text of a row, by its index; it is null in `texts`.
        found: What is there instead, by the row's index, where the reader knows more than the reason.
        unit: What makes one document, where a user could choose it otherwise.
    """

    texts: pa.Array
    number: Callable[[int], int]
    rejected: Mapping[int, str] = field(default_factory=dict)
    found: Mapping[int, str] = field(default_factory=dict)
    unit: str = ""


def rejected_rows(number: int, rejected: tuple[str, str]) -> Rows:
    """One row without text, for a line or file that was rejected for a reason, and what was found."""
    import pyarrow as pa

    reason, found = rejected
    return Rows(pa.nulls(1, pa.large_binary()), lambda _: number, {0: reason}, {0: found})


@dataclass(frozen=True)
class Piece:
    """A stretch of one file.

    Attributes:
        number: How many pieces of the file come before it.
        end: Where the next piece begins.
        source_bytes: Bytes of the file that it takes.
        rows: Parses the piece; a piece that is not wanted is never parsed.
    """

    number: int
    end: Position
    source_bytes: int
    rows: Callable[[], Rows]


class Reader(Protocol):
    """Reads one file.

    Attributes:
        name: What messages call it.
        num_bytes: Sum of `source_bytes` of all pieces, or `None` when it is not known.
    """

    name: str
    num_bytes: int | None

    def pieces(self, start: Position | None) -> Iterator[Piece]:
        """The pieces from a position, or from the beginning."""
        ...
