"""Reads one column of a CSV file with a header line; quoted fields may span lines.

Where a row begins cannot be known without the rows before it, so a reading that starts at a
position parses the file from its beginning and passes over what came before.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import partial
from itertools import count

from automodel_cli.engine.prep.corpus.blocks import BOM
from automodel_cli.engine.prep.corpus.columns import missing_column
from automodel_cli.engine.prep.corpus.pieces import PIECE_BYTES, PIECE_ROWS, Piece, Position, Rows
from automodel_cli.engine.prep.corpus.streams import InputFile, Readable, read_fully, unpacked
from automodel_cli.errors import DataError

# Bytes that are no UTF-8 travel through the parser as surrogates and come out as they were.
_ERRORS = "surrogateescape"


class CsvReader:
    """One CSV file.

    Args:
        file: The file.
        column: Column that holds the text.
        max_document_bytes: A field may have this many characters, and somewhat more.
        delimiter: Character between fields.
    """

    def __init__(self, file: InputFile, column: str, max_document_bytes: int, delimiter: str = ",") -> None:
        self.name = file.name
        self.num_bytes = file.num_bytes if file.codec is None else None
        self._file = file
        self._column = column
        self._delimiter = delimiter
        # A field too long to be a document shall be counted as one, not end the reading.
        self._max_field_chars = 2 * max_document_bytes + PIECE_BYTES

    def pieces(self, start: Position | None) -> Iterator[Piece]:
        """Stretches of `PIECE_ROWS` rows, or of about `PIECE_BYTES`.

        Raises:
            DataError: The file does not have the column, or is not CSV.
        """
        done = start[0] if start else 0
        with unpacked(self._file) as stream:
            texts: list[bytes | None] = []
            numbers: list[int] = []
            begin = pieces = num_bytes = 0
            for text, number, offset in self._fields(stream):
                texts.append(text)
                numbers.append(number)
                num_bytes += len(text or b"")
                if len(texts) >= PIECE_ROWS or num_bytes >= PIECE_BYTES:
                    if pieces >= done:
                        yield Piece(pieces, (pieces + 1,), offset - begin, partial(_rows, texts, numbers))
                    texts, numbers, num_bytes, begin, pieces = [], [], 0, offset, pieces + 1
            if texts and pieces >= done:
                yield Piece(pieces, (pieces + 1,), offset - begin, partial(_rows, texts, numbers))

    def _fields(self, stream: Readable) -> Iterator[tuple[bytes | None, int, int]]:
        """The text, line number and end in the file of every row; the text is `None` in a row of another shape."""
        # The limit is one for all of the process; every reading sets its own before it parses.
        csv.field_size_limit(self._max_field_chars)
        lines = _Lines(stream)
        rows = csv.reader(lines, delimiter=self._delimiter)
        try:
            header = next(rows, [])
            if self._column not in header:
                raise missing_column(self._column, header, f"{self.name}:1")
            index = header.index(self._column)
            for row in rows:
                if row:
                    text = row[index].encode("utf-8", _ERRORS) if len(row) == len(header) else None
                    yield text, rows.line_num, lines.num_bytes
        except csv.Error as error:
            raise DataError(
                f"this is not CSV: {error}",
                where=f"{self.name}:{rows.line_num}",
                help="a quote that is never closed looks like this",
            ) from error


class _Lines:
    """The lines of a stream as the parser takes them, and how many bytes they were."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self.num_bytes = 0

    def __iter__(self) -> Iterator[str]:
        rest = b""
        for number in count():
            chunk = read_fully(self._stream, PIECE_BYTES)
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop() if chunk else b""
            if number == 0 and lines:
                lines[0] = lines[0].removeprefix(BOM)
            for line in lines:
                self.num_bytes += len(line) + 1
                yield line.decode("utf-8", _ERRORS) + "\n"
            if not chunk:
                return


def _rows(texts: list[bytes | None], numbers: list[int]) -> Rows:
    import pyarrow as pa

    rejected = {row: "invalid_csv" for row, text in enumerate(texts) if text is None}
    return Rows(pa.array(texts, pa.large_binary()), numbers.__getitem__, rejected)
