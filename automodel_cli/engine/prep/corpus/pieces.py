"""What a reader of one file gives: pieces, each with the position behind it and rows parsed on demand.

Pieces form a chain: where one ends depends only on where it began. So a reading that starts at a
position has the same pieces as one that began earlier, in any process.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from automodel_cli.engine.config.suggest import nearest
from automodel_cli.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


# Numbers, the first of which counts the pieces of the file before it; the meaning of the others is the reader's own.
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


def missing_column(column: str, columns: Iterable[str], where: str, inside: Iterable[str] = ()) -> DataError:
    """The error for a file without the column: it names those that there are.

    Args:
        column: What was asked for.
        columns: What the file has.
        where: The file.
        inside: Fields inside its columns, by their dotted paths.
    """
    names, fields = sorted(columns), sorted(inside)
    # A nested field of the same name is a better guess than a similar name.
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


class JoinedReader:
    """All files of a source, as one reader of whole documents.

    A document begins with a row that matches a pattern, and may go on into the next file.

    A position is the place of the piece in which the document that follows begins, and the number
    of the row there.

    Args:
        readers: Give the rows.
        title_pattern: A row that matches it as a whole begins a document.
    """

    def __init__(self, readers: Sequence[Reader], title_pattern: str) -> None:
        self.name = readers[0].name
        sizes = [reader.num_bytes for reader in readers]
        self.num_bytes = None if None in sizes else sum(size or 0 for size in sizes)
        self._readers = readers
        self._title = re.compile(title_pattern.encode())

    def pieces(self, start: Position | None) -> Iterator[Piece]:
        """One piece of documents for every piece of rows in which a document ends."""
        number, first_file, first_row, *inner = start or (0, 0, 0)
        open_rows: list[bytes] = []
        begin: tuple[int, ...] = (first_file, first_row, *inner)
        at = tuple(inner)
        num_bytes = 0
        is_again = start is not None
        for file in range(first_file, len(self._readers)):
            for piece in self._readers[file].pieces(at or None):
                rows = _values(piece.rows().texts)
                # The piece in which the first document begins was counted when it was read before.
                num_bytes += 0 if is_again else piece.source_bytes
                is_again = False
                documents: list[bytes] = []
                for row in range(first_row, len(rows)):
                    if open_rows and self._title.fullmatch(rows[row]):
                        documents.append(b"".join(open_rows))
                        open_rows = []
                    if not open_rows:
                        begin = (file, row, *at)
                    open_rows.append(rows[row])
                first_row = 0
                at = piece.end
                if documents:
                    yield Piece(number, (number + 1, *begin), num_bytes, partial(_rows, documents))
                    number, num_bytes = number + 1, 0
            at = ()
        if open_rows:
            end = (number + 1, len(self._readers), 0)
            yield Piece(number, end, num_bytes, partial(_rows, [b"".join(open_rows)]))


def _values(texts: pa.Array) -> list[bytes]:
    import pyarrow as pa

    return [value or b"" for value in texts.cast(pa.large_binary()).to_pylist()]


def _rows(documents: list[bytes]) -> Rows:
    import pyarrow as pa

    return Rows(pa.array(documents, pa.large_binary()), lambda row: row + 1)
