"""Joins rows into documents, where a data set spreads one document over many rows.

A document begins with a row that matches a pattern, and may go on into the next file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from automodel_cli.engine.prep.corpus.pieces import Piece, Position, Reader, Rows

if TYPE_CHECKING:
    import pyarrow as pa


class JoinedReader:
    """All files of a source, as one reader of whole documents.

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
