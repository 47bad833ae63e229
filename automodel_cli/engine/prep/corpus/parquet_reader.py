"""Reads one column of a parquet file, row group by row group; no other column is touched.

Memory is bounded by the largest document, not by the file: equal texts are stored once and become far more
when they are decoded, and one row group may be as large as its file. So few rows are decoded at a time, and
a column that is large is read in stretches.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from automodel_cli.engine.prep.corpus.input_file import InputFile, unpacked
from automodel_cli.engine.prep.corpus.pieces import (
    PIECE_BYTES,
    PIECE_ROWS,
    Piece,
    Position,
    Rows,
    missing_column,
    not_text,
    repeated_column,
)

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import parquet

# A piece that holds more decoded bytes ends there, however few rows it has.
_MAX_PIECE_BYTES = 1 << 24
# Rows that are decoded at once, where texts are short; fewer where they are long and could come to more bytes.
_ROWS_AT_ONCE = 32
_MAX_BYTES_AT_ONCE = 1 << 27
# A column of a row group that takes more bytes in the file is read in stretches, others whole.
_MAX_BUFFER_BYTES = 1 << 26
_STRETCH_BYTES = 1 << 23


class ParquetReader:
    """One parquet file.

    Args:
        file: The file; a compressed one is unpacked into a temporary file first.
        column: Column that holds the text; `doc.text` is also the field `text` of a column `doc`.
        groups: `(first, step)`: only every `step`-th row group is read, from the first on.
    """

    def __init__(self, file: InputFile, column: str, groups: tuple[int, int] = (0, 1)) -> None:
        self.name = file.name
        self.num_bytes = None if file.codec or file.num_bytes is None else file.num_bytes // groups[1]
        self._file = file
        self._column = column
        self._groups = groups

    def num_groups(self) -> int:
        """Row groups of the file."""
        with self._open() as parquet_file:
            return int(parquet_file.num_row_groups)

    def every(self, first: int, step: int) -> ParquetReader:
        """The same file, of which only every `step`-th row group is read."""
        return ParquetReader(self._file, self._column, (first, step))

    def check_column(self) -> None:
        """Read the file's footer.

        Raises:
            DataError: The file does not have the column, has it twice, or it holds no text.
        """
        with self._open() as parquet_file:
            self._find_column(parquet_file)

    def pieces(self, start: Position | None) -> Iterator[Piece]:
        """Stretches of rows, each in one row group.

        Raises:
            DataError: As for `check_column`.
        """
        number, first_group, first_row = start or (0, self._groups[0], 0)
        with self._open() as parquet_file:
            column = self._find_column(parquet_file)
            metadata = parquet_file.metadata
            file_bytes = self._file.num_bytes or metadata.serialized_size
            rows_before = [0]
            for group in range(metadata.num_row_groups):
                rows_before.append(rows_before[-1] + metadata.row_group(group).num_rows)
            for group in range(first_group, metadata.num_row_groups, self._groups[1]):
                group_rows = metadata.row_group(group).num_rows
                for row, texts in _stretches(parquet_file, column, group, first_row):
                    end_row = row + len(texts)
                    is_last = end_row == group_rows
                    end = (number + 1, group + self._groups[1], 0) if is_last else (number + 1, group, end_row)
                    begin_byte, end_byte = (
                        file_bytes * (rows_before[group] + at) // max(metadata.num_rows, 1) for at in (row, end_row)
                    )
                    first_number = rows_before[group] + row + 1
                    yield Piece(number, end, end_byte - begin_byte, partial(_as_rows, texts, first_number))
                    number += 1
                first_row = 0

    def _find_column(self, parquet_file: parquet.ParquetFile) -> _Column:
        """The column of this name or, if there is none, the field at the end of a dotted path."""
        import pyarrow as pa

        schema = parquet_file.schema_arrow
        fields = list(schema)
        path = [self._column] if self._column in schema.names else self._column.split(".")
        for depth, name in enumerate(path, start=1):
            same = [field for field in fields if field.name == name]
            if not same:
                raise missing_column(self._column, schema.names, self.name, _inside(schema))
            if len(same) > 1:
                raise repeated_column(self._column, len(same), self.name)
            kind = same[0].type
            if pa.types.is_null(kind):  # and so is whatever would be inside it
                path = path[:depth]
                break
            fields = list(kind) if pa.types.is_struct(kind) else []
        if not _is_text(kind):
            raise not_text(self._column, str(kind), self.name)
        leaves = [parquet_file.schema.column(leaf).path for leaf in range(len(parquet_file.schema))]
        return _Column(tuple(path), leaves.index(".".join(path)), pa.types.is_dictionary(kind))

    @contextmanager
    def _open(self) -> Iterator[parquet.ParquetFile]:
        if self._file.codec is not None:
            with tempfile.TemporaryFile() as whole, unpacked(self._file) as stream:
                shutil.copyfileobj(stream, whole, 1 << 22)
                whole.seek(0)
                with _parquet_file(whole) as parquet_file:
                    yield parquet_file
        # Arrow accepts only paths that are UTF-8.
        elif self._file.path is not None and str(self._file.path).isprintable():
            with _parquet_file(self._file.path) as parquet_file:
                yield parquet_file
        else:
            with self._file.open() as raw, _parquet_file(raw) as parquet_file:
                yield parquet_file


@dataclass(frozen=True)
class _Column:
    """Where the text stands in a file.

    Attributes:
        path: The column, and the fields inside it.
        leaf: Its index among the leaves of the file's schema.
        is_dictionary: Its values come as indices into a dictionary.
    """

    path: tuple[str, ...]
    leaf: int
    is_dictionary: bool

    def of(self, batch: pa.RecordBatch) -> pa.Array:
        """The values of some rows."""
        import pyarrow.compute as pc

        outer, *inner = self.path
        # A column of another name is there only where its dotted path is the same.
        values = batch.column(0 if batch.num_columns == 1 else outer)
        return pc.struct_field(values, inner) if inner else values


def _parquet_file(source: Path | BinaryIO) -> parquet.ParquetFile:
    from pyarrow import parquet

    # A column of a row group is read at once, since many small reads cost a request each where the file is far
    # away; it is let go with its row group.
    opened = parquet.ParquetFile(source, pre_buffer=True)
    groups = map(opened.metadata.row_group, range(opened.metadata.num_row_groups))
    large = (group for group in groups if group.total_byte_size > _MAX_BUFFER_BYTES)
    if any(
        group.column(column).total_compressed_size > _MAX_BUFFER_BYTES
        for group in large
        for column in range(group.num_columns)
    ):
        return parquet.ParquetFile(source, metadata=opened.metadata, buffer_size=_STRETCH_BYTES, pre_buffer=False)
    return opened


def _stretches(
    parquet_file: parquet.ParquetFile, column: _Column, group: int, first_row: int
) -> Iterator[tuple[int, pa.Array]]:
    """The texts of a row group from `first_row` on, where a stretch begins; each stretch with its first row."""
    import pyarrow as pa

    metadata = parquet_file.metadata.row_group(group)
    num_bytes = metadata.column(column.leaf).total_uncompressed_size
    num_rows = _rows_of_stretch(metadata.num_rows, num_bytes)
    parts: list[pa.Array] = []
    begin, held_bytes = first_row, 0
    for row, texts in _decoded(parquet_file, column, group, first_row, num_rows, _rows_at_once(num_rows, num_bytes)):
        parts.append(texts)
        held_bytes += texts.nbytes
        end = row + len(texts)
        if end % num_rows == 0 or held_bytes > _MAX_PIECE_BYTES:
            # Released here, so that it is not held while the caller works.
            texts, parts = pa.concat_arrays(parts), []
            yield begin, texts
            begin, held_bytes = end, 0
    if parts:
        yield begin, pa.concat_arrays(parts)


def _decoded(
    parquet_file: parquet.ParquetFile, column: _Column, group: int, first_row: int, num_rows: int, at_once: int
) -> Iterator[tuple[int, pa.Array]]:
    """At most `at_once` rows, each time with the number of the first; none crosses a multiple of `num_rows`."""
    # A dictionary is read again for every batch, and undecoded values are small.
    batch_rows = num_rows if column.is_dictionary else min(at_once, num_rows)
    row = 0
    for batch in parquet_file.iter_batches(
        batch_rows, row_groups=[group], columns=[".".join(column.path)], use_threads=False
    ):
        values = column.of(batch)
        end = row + len(values)
        at = max(row, first_row)
        while at < end:
            length = min(at_once, end - at, num_rows - at % num_rows)
            yield at, _plain(values if length == len(values) else values.slice(at - row, length))
            at += length
        row = end


def _rows_of_stretch(num_rows: int, num_bytes: int) -> int:
    """Rows that hold about as many bytes as a piece should; the same at every reading of the file."""
    return max(1, min(PIECE_ROWS, PIECE_BYTES * num_rows // max(num_bytes, 1)))


def _rows_at_once(num_rows: int, num_bytes: int) -> int:
    """Rows of a stretch of `num_rows` that are decoded together; one text may hold as many bytes as are stored."""
    # Where most texts are short, the time that every batch takes matters more.
    usual = num_rows * _ROWS_AT_ONCE // (2 * PIECE_ROWS)
    return max(1, min(_ROWS_AT_ONCE, max(usual, _MAX_BYTES_AT_ONCE // max(num_bytes, 1))))


def _as_rows(texts: pa.Array, first_number: int) -> Rows:
    return Rows(texts, lambda row: first_number + row)


def _inside(fields: Iterable[pa.Field], before: str = "") -> Iterator[str]:
    """The fields inside structures, by their dotted paths."""
    import pyarrow as pa

    for field in fields:
        if pa.types.is_struct(field.type):
            yield from _inside(field.type, f"{before}{field.name}.")
        elif before:
            yield before + field.name


def _is_text(found: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(found):
        return _is_text(found.value_type)
    kinds = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_binary,
        pa.types.is_large_binary,
        # A column in which every text is null may be stored without a type.
        pa.types.is_null,
    )
    return any(is_kind(found) for is_kind in kinds)


def _plain(texts: pa.Array) -> pa.Array:
    import pyarrow as pa

    if pa.types.is_dictionary(texts.type):
        return _plain(texts.dictionary_decode())
    return texts.cast(pa.large_string()) if pa.types.is_string_view(texts.type) else texts
