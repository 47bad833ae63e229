"""Reads one column of a parquet file, row group by row group; no other column is touched."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from automodel_cli.engine.prep.corpus.columns import missing_column, not_text
from automodel_cli.engine.prep.corpus.pieces import PIECE_BYTES, PIECE_ROWS, Piece, Position, Rows
from automodel_cli.engine.prep.corpus.streams import InputFile, unpacked

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import parquet


class ParquetReader:
    """One parquet file.

    Args:
        file: The file; a compressed one is unpacked into a temporary file first.
        column: Column that holds the text.
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
            DataError: The file does not have the column, or it holds no text.
        """
        with self._open() as parquet_file:
            self._index_of_column(parquet_file)

    def pieces(self, start: Position | None) -> Iterator[Piece]:
        """Stretches of rows, each in one row group.

        Raises:
            DataError: As for `check_column`.
        """
        number, first_group, first_row = start or (0, self._groups[0], 0)
        with self._open() as parquet_file:
            column = self._index_of_column(parquet_file)
            metadata = parquet_file.metadata
            file_bytes = self._file.num_bytes or metadata.serialized_size
            rows_before = [0]
            for group in range(metadata.num_row_groups):
                rows_before.append(rows_before[-1] + metadata.row_group(group).num_rows)
            for group in range(first_group, metadata.num_row_groups, self._groups[1]):
                group_rows = metadata.row_group(group).num_rows
                stretch = _rows_of_stretch(group_rows, metadata.row_group(group).column(column).total_uncompressed_size)
                for row, texts in self._stretches(parquet_file, group, stretch, first_row):
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

    def _stretches(
        self, parquet_file: parquet.ParquetFile, group: int, num_rows: int, first_row: int
    ) -> Iterator[tuple[int, pa.Array]]:
        """The column in stretches of `num_rows`, from `first_row` on, which is where one begins."""
        row = 0
        for batch in parquet_file.iter_batches(num_rows, row_groups=[group], columns=[self._column], use_threads=False):
            if row >= first_row:
                yield row, batch.column(0)
            row += batch.num_rows

    def _index_of_column(self, parquet_file: parquet.ParquetFile) -> int:
        """Where the column stands among the leaves of the file's schema."""
        schema = parquet_file.schema_arrow
        if self._column not in schema.names:
            raise missing_column(self._column, schema.names, self.name)
        found = schema.field(self._column).type
        if not _is_text(found):
            raise not_text(self._column, str(found), self.name)
        leaves = [parquet_file.schema.column(leaf).path for leaf in range(len(parquet_file.schema))]
        return leaves.index(self._column)

    @contextmanager
    def _open(self) -> Iterator[parquet.ParquetFile]:
        from pyarrow import parquet

        # A column chunk is read at once, since many small reads cost a request each where the file
        # is far away; it is let go with its row group, so memory does not grow with the file.
        if self._file.codec is not None:
            with tempfile.TemporaryFile() as whole, unpacked(self._file) as stream:
                shutil.copyfileobj(stream, whole, 1 << 22)
                whole.seek(0)
                with parquet.ParquetFile(whole, pre_buffer=True) as parquet_file:
                    yield parquet_file
        elif self._file.path is not None:
            with parquet.ParquetFile(self._file.path, pre_buffer=True) as parquet_file:
                yield parquet_file
        else:
            with self._file.open() as raw, parquet.ParquetFile(raw, pre_buffer=True) as parquet_file:
                yield parquet_file


def _rows_of_stretch(num_rows: int, num_bytes: int) -> int:
    """Rows that hold about as many bytes as a piece should; the same at every reading of the file."""
    return max(1, min(PIECE_ROWS, PIECE_BYTES * num_rows // max(num_bytes, 1)))


def _as_rows(texts: pa.Array, first_number: int) -> Rows:
    return Rows(_plain(texts), lambda row: first_number + row)


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
    )
    return any(is_kind(found) for is_kind in kinds)


def _plain(texts: pa.Array) -> pa.Array:
    import pyarrow as pa

    if pa.types.is_dictionary(texts.type):
        return _plain(texts.dictionary_decode())
    return texts.cast(pa.large_string()) if pa.types.is_string_view(texts.type) else texts
