"""Reads JSON lines: one object per line, the text in one of its fields.

Lines are parsed by Arrow, block by block. What Arrow refuses as a block (a lone surrogate, a line
that is no JSON, a text that is a number) is parsed again line by line, to tell the good from the bad.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from automodel_cli.engine.prep.corpus.blocks import BLANK_LINES, LINES, Block, blocks
from automodel_cli.engine.prep.corpus.clean import why_not_utf8
from automodel_cli.engine.prep.corpus.columns import missing_column
from automodel_cli.engine.prep.corpus.pieces import Piece, Position, Rows
from automodel_cli.engine.prep.corpus.streams import InputFile

if TYPE_CHECKING:
    import pyarrow as pa

# `\u00e9` takes six bytes of JSON for two of UTF-8, a control character six for one.
_MAX_ESCAPED = 6
_OTHER_FIELDS_BYTES = 1 << 20
_BLANK_BEGINS = (b"\n", b"\r", b" ", b"\t")


class JsonReader:
    """One file of JSON lines.

    Args:
        file: The file.
        column: Field that holds the text.
        max_document_bytes: Lines that cannot hold a shorter document are passed over.
    """

    def __init__(self, file: InputFile, column: str, max_document_bytes: int) -> None:
        self.name = file.name
        self.num_bytes = file.num_bytes if file.codec is None else None
        self._file = file
        self._column = column
        self._max_line_bytes = _MAX_ESCAPED * max_document_bytes + _OTHER_FIELDS_BYTES

    def pieces(self, start: Position | None) -> Iterator[Piece]:
        """Blocks of whole lines.

        Raises:
            DataError: No line of a block has the column.
        """
        for block in blocks(self._file, start, LINES, self._max_line_bytes):
            yield Piece(block.number, block.end, block.num_bytes, partial(self._rows, block))

    def _rows(self, block: Block) -> Rows:
        import pyarrow as pa

        if block.is_too_long:
            return Rows(pa.nulls(1, pa.large_string()), lambda _: block.first_line, {0: "too_large"})
        texts = _parse_block(block.content, self._column)
        if texts is not None and texts.null_count < len(texts):
            return Rows(texts, lambda row: block.first_line + row)
        return self._rows_by_line(block)

    def _rows_by_line(self, block: Block) -> Rows:
        import pyarrow as pa

        numbers: list[int] = []
        texts: list[str | None] = []
        rejected: dict[int, str] = {}
        keys: set[str] = set()
        for number, line in enumerate(block.content.split(b"\n"), start=block.first_line):
            if not line.strip():
                continue
            text, reason, found = _parse_line(line, self._column)
            if reason:
                rejected[len(texts)] = reason
            keys.update(found)
            numbers.append(number)
            texts.append(text)
        if keys and self._column not in keys:
            raise missing_column(self._column, keys, f"{self.name}:{numbers[0]}")
        return Rows(pa.array(texts, pa.large_string()), numbers.__getitem__, rejected)


def _parse_block(content: bytes, column: str) -> pa.LargeStringArray | None:
    """The texts of all lines, or `None` where the lines must be looked at one by one."""
    import pyarrow as pa
    from pyarrow import json as arrow_json

    # Arrow passes over blank lines and takes two objects on one line: then rows are no lines.
    if content.startswith(_BLANK_BEGINS) or BLANK_LINES.search(content):
        return None
    try:
        table = arrow_json.read_json(
            pa.BufferReader(content),
            read_options=arrow_json.ReadOptions(use_threads=False, block_size=len(content) + 1),
            parse_options=arrow_json.ParseOptions(
                explicit_schema=pa.schema([(column, pa.large_string())]), unexpected_field_behavior="ignore"
            ),
        )
    # Invalid UTF-8 inside a message about it makes the message itself undecodable.
    except (pa.ArrowInvalid, UnicodeDecodeError):
        return None
    num_lines = content.count(b"\n") + (not content.endswith(b"\n"))
    if table.num_rows != num_lines:
        return None
    chunks = table.column(column).chunks
    return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)


def _parse_line(line: bytes, column: str) -> tuple[str | None, str, Iterable[str]]:
    """The text of a line, or the reason why there is none, and the keys that it has."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return None, why_not_utf8(line), {}
    # A number of too many digits is a ValueError, too deep nesting a RecursionError.
    except (ValueError, RecursionError):
        return None, "invalid_json", {}
    if not isinstance(row, dict):
        return None, "not_an_object", {}
    text = row.get(column)
    if text is None:
        return None, "null", row
    if not isinstance(text, str):
        return None, "not_text", row
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return None, "lone_surrogate", row
    return text, "", row
