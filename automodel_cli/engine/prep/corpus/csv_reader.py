"""Reads one column of a CSV file with a header line; quoted fields may span lines.

Where a row begins cannot be known without the rows before it, so a reading that starts at a
position parses the file from its beginning and passes over what came before.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import partial

from automodel_cli.engine.prep.corpus.input_file import InputFile, Readable, read_fully, unpacked
from automodel_cli.engine.prep.corpus.pieces import (
    PIECE_BYTES,
    PIECE_ROWS,
    Piece,
    Position,
    Rows,
    missing_column,
    rejected_rows,
    repeated_column,
)
from automodel_cli.engine.prep.corpus.text_reader import BOM, no_text
from automodel_cli.errors import DataError

# Bytes that are not UTF-8 pass the parser as surrogates and are restored behind it.
_ERRORS = "surrogateescape"
_MAX_LINE_FIELDS = 4


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
        # A field that is too long for a document is counted as a bad one and does not end the reading.
        self._max_field_chars = 2 * max_document_bytes + PIECE_BYTES

    def pieces(self, start: Position | None) -> Iterator[Piece]:
        """Stretches of `PIECE_ROWS` rows, or of about `PIECE_BYTES`.

        Raises:
            DataError: The file does not have the column, or is not CSV.
        """
        done = start[0] if start else 0
        with unpacked(self._file) as stream:
            lines = _Lines(stream, _MAX_LINE_FIELDS * self._max_field_chars, self.name)
            rejected = no_text(lines.begin)
            if rejected is not None:
                if not done:
                    yield Piece(0, (1,), lines.pass_over(), partial(rejected_rows, 1, rejected))
                return
            texts: list[bytes | None] = []
            numbers: list[int] = []
            begin = pieces = num_bytes = 0
            for text, number, offset in self._fields(lines):
                texts.append(text)
                numbers.append(number)
                num_bytes += len(text or b"")
                if len(texts) >= PIECE_ROWS or num_bytes >= PIECE_BYTES:
                    if pieces >= done:
                        yield Piece(pieces, (pieces + 1,), offset - begin, partial(_rows, texts, numbers))
                    texts, numbers, num_bytes, begin, pieces = [], [], 0, offset, pieces + 1
            if texts and pieces >= done:
                yield Piece(pieces, (pieces + 1,), offset - begin, partial(_rows, texts, numbers))

    def _fields(self, lines: _Lines) -> Iterator[tuple[bytes | None, int, int]]:
        """The text, line number and end in the file of every row; the text is `None` in a row of another shape."""
        # The limit is global to the process, so every reading sets its own before it parses.
        csv.field_size_limit(self._max_field_chars)
        rows = csv.reader(lines, delimiter=self._delimiter)
        try:
            header = next(filter(None, rows), [])
            if not header:
                return
            if self._column not in header:
                raise self._without_column(header)
            if header.count(self._column) > 1:
                raise repeated_column(self._column, header.count(self._column), f"{self.name}:1")
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

    def _without_column(self, header: list[str]) -> DataError:
        error = missing_column(self._column, header, f"{self.name}:1")
        other = next((mark for mark in ";\t|," if len(header) == 1 and mark in header[0]), None)
        if other is None:
            return error
        rule = f"between the fields of this file stands {other!r}"
        if other in ",\t":
            ending = ".csv" if other == "," else ".tsv"
            return DataError(error.message, where=error.where, help=f"{rule}: give it the ending {ending}")
        return DataError(error.message, where=error.where, help=f"{rule}, but only commas, and tabs in .tsv, are read")


class _Lines:
    """The lines of a stream as the parser takes them, and how many bytes they were.

    Args:
        stream: The content of the file.
        max_bytes: Limit for one line.
        name: What messages call the file.

    Attributes:
        begin: The first bytes of the file, before any line is taken.
        num_bytes: Bytes of the lines taken.

    Raises:
        DataError: A line is longer.
    """

    def __init__(self, stream: Readable, max_bytes: int, name: str) -> None:
        self._stream = stream
        self._max_bytes = max_bytes
        self._name = name
        self.begin = read_fully(stream, PIECE_BYTES)
        self.num_bytes = 0

    def pass_over(self) -> int:
        """Read to the end without taking a line; the bytes of the file."""
        num_bytes = len(self.begin)
        while chunk := self._stream.read(PIECE_BYTES):
            num_bytes += len(chunk)
        return num_bytes

    def __iter__(self) -> Iterator[str]:
        chunk, self.begin = self.begin.removeprefix(BOM), b""
        begun: list[bytes] = []
        while chunk:
            *lines, rest = chunk.split(b"\n")
            for line in lines:
                whole, begun = b"".join([*begun, line]), []
                self.num_bytes += len(whole) + 1
                yield whole.decode("utf-8", _ERRORS) + "\n"
            begun.append(rest)
            if sum(map(len, begun)) > self._max_bytes:
                raise DataError(
                    f"a line has more than {self._max_bytes:,} bytes",
                    where=self._name,
                    help="is this CSV, with a line feed behind each row? --max-document-bytes allows longer lines",
                )
            chunk = read_fully(self._stream, PIECE_BYTES)
        whole = b"".join(begun)
        self.num_bytes += len(whole) + 1
        yield whole.decode("utf-8", _ERRORS) + "\n"


def _rows(texts: list[bytes | None], numbers: list[int]) -> Rows:
    import pyarrow as pa

    rejected = {row: "invalid_csv" for row, text in enumerate(texts) if text is None}
    return Rows(pa.array(texts, pa.large_binary()), numbers.__getitem__, rejected)
