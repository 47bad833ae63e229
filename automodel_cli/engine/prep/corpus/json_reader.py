"""Reads JSON lines: one object per line, the text in one of its fields.

Lines are parsed by Arrow, block by block. What Arrow refuses as a block (a lone surrogate, a line
that is no JSON, a text that is a number) is parsed again line by line, to tell the good from the bad.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from automodel_cli.engine.prep.corpus.clean import not_utf8, why_not_utf8
from automodel_cli.engine.prep.corpus.input_file import InputFile
from automodel_cli.engine.prep.corpus.pieces import Piece, Position, Rows, missing_column, rejected_rows
from automodel_cli.engine.prep.corpus.text_reader import BLANK_LINES, BOM, LINES, Block, Rejection, blocks, no_text
from automodel_cli.engine.prep.left_out import JSON_ARRAY, PRETTY_JSON

if TYPE_CHECKING:
    import pyarrow as pa

# `\u00e9` takes six bytes of JSON for two of UTF-8, a control character six for one.
_MAX_ESCAPED = 6
_OTHER_FIELDS_BYTES = 1 << 20
# Names of fields in a message about a missing one.
_MAX_NAMES = 100
_MAX_DEPTH = 3
# Lines of a log begin with a bracket too.
_ARRAY = re.compile(rb'\[\s*[{"\[]')
_BLANK_BEGINS = (b"\n", b"\r", b" ", b"\t")


class JsonReader:
    """One file of JSON lines.

    Args:
        file: The file.
        column: Field that holds the text; with dots in it, also a field of objects inside each other.
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
        for block in blocks(self._file, start, LINES, self._max_line_bytes, _no_lines):
            yield Piece(block.number, block.end, block.num_bytes, partial(self._rows, block))

    def _rows(self, block: Block) -> Rows:
        if block.rejected is not None:
            return rejected_rows(block.first_line, block.rejected)
        texts = _parse_block(block.content, self._column)
        if texts is not None and texts.null_count < len(texts):
            return Rows(texts, lambda row: block.first_line + row)
        return self._rows_by_line(block)

    def _rows_by_line(self, block: Block) -> Rows:
        import pyarrow as pa

        numbers: list[int] = []
        texts: list[str | None] = []
        rejected: dict[int, str] = {}
        found: dict[int, str] = {}
        names: dict[str, None] = {}
        inside: dict[str, None] = {}
        has_column = False
        for number, line in enumerate(block.content.split(b"\n"), start=block.first_line):
            if not line.strip():
                continue
            text, reason, row = _parse_line(line, self._column)
            if reason:
                # Only the first of each reason is reported.
                if reason == "invalid_utf8" and reason not in rejected.values():
                    found[len(texts)] = not_utf8(line)
                rejected[len(texts)] = reason
            has_column = has_column or has_field(row, self._column)
            if not has_column and len(names) < _MAX_NAMES:
                names.update(dict.fromkeys(row))
                inside.update(dict.fromkeys(_inside(row)))
            numbers.append(number)
            texts.append(text)
        if names and not has_column:
            raise missing_column(self._column, names, f"{self.name}:{numbers[0]}", inside)
        return Rows(pa.array(texts, pa.large_string()), numbers.__getitem__, rejected, found)


def _parse_block(content: bytes, column: str) -> pa.LargeStringArray | None:
    """The texts of all lines, or `None` where the lines must be looked at one by one."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import json as arrow_json

    # Arrow skips blank lines and accepts two objects on one line: then row numbers are not line numbers.
    if content.startswith(_BLANK_BEGINS) or BLANK_LINES.search(content):
        return None
    # Arrow rejects names that are not UTF-8.
    if not column.isprintable():
        return None
    try:
        table = arrow_json.read_json(
            pa.BufferReader(content),
            read_options=arrow_json.ReadOptions(use_threads=False, block_size=len(content) + 1),
            parse_options=arrow_json.ParseOptions(explicit_schema=_schema(column), unexpected_field_behavior="ignore"),
        )
    # Invalid UTF-8 inside a message about it makes the message itself undecodable.
    except (pa.ArrowInvalid, UnicodeDecodeError):
        return None
    num_lines = content.count(b"\n") + (not content.endswith(b"\n"))
    if table.num_rows != num_lines:
        return None
    texts = table.column(column)
    first, _, inner = column.partition(".")
    if inner:
        nested = pc.struct_field(table.column(first), inner.split("."))
        texts = pc.coalesce(texts, nested)
    chunks = texts.chunks
    return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)


def _schema(column: str) -> pa.Schema:
    """What Arrow takes of a line: a field with the column's name and, where it has dots, the objects on its path."""
    import pyarrow as pa

    first, *inner = column.split(".")
    kind = pa.large_string()
    for name in reversed(inner):
        kind = pa.struct([(name, kind)])
    return pa.schema([(column, pa.large_string()), *([(first, kind)] if inner else [])])


def field_of(row: Mapping[str, Any], column: str) -> Any:
    """The value of a field: that of its literal name or, if there is none, at the end of a dotted path.

    >>> field_of({"doc": {"text": "a"}}, "doc.text"), field_of({"doc": {"text": "a"}, "doc.text": "b"}, "doc.text")
    ('a', 'b')
    """
    value = row.get(column)
    if value is not None or "." not in column:
        return value
    at: Any = row
    for name in column.split("."):
        at = at.get(name) if isinstance(at, dict) else None
    return at


def has_field(row: Mapping[str, Any], column: str) -> bool:
    """Whether an object has a field, or an object on the way to it that is null.

    >>> [has_field(row, "doc.text") for row in ({"doc": {"text": None}}, {"doc": None}, {"doc": {}}, {"doc.text": ""})]
    [True, True, False, True]
    """
    at: Any = row
    for name in () if column in row else column.split("."):
        if at is None:
            break
        if not isinstance(at, dict) or name not in at:
            return False
        at = at[name]
    return True


def _inside(row: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """The fields of objects inside an object, by their dotted paths."""
    for name, value in row.items():
        if isinstance(value, dict) and before.count(".") < _MAX_DEPTH:
            yield from _inside(value, f"{before}{name}.")
        elif before:
            yield before + name


def _no_lines(begin: bytes) -> Rejection | None:
    """Why a file that begins so is no JSON lines at all: it holds no text, or one JSON value over all of its lines."""
    rejected = no_text(begin)
    if rejected is not None:
        return rejected
    lines = begin.removeprefix(BOM).lstrip().split(b"\n", 2)
    # Where the second line is an object of its own, the first is a bad line among others.
    if len(lines) > 1 and isinstance(_value(lines[1]), dict):
        return None
    first = _value(lines[0])
    is_array = any(isinstance(item, dict) for item in first[:1]) if isinstance(first, list) else first is None
    if is_array and (_ARRAY.match(lines[0]) or (len(lines) > 1 and lines[0].strip() == b"[")):
        return "not_an_object", JSON_ARRAY
    return ("invalid_json", PRETTY_JSON) if len(lines) > 1 and lines[0].strip() == b"{" else None


def _value(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None


def _parse_line(line: bytes, column: str) -> tuple[str | None, str, Mapping[str, Any]]:
    """The text of a line, or the reason why there is none, and the object that it is."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return None, why_not_utf8(line), {}
    # A number of too many digits is a ValueError, too deep nesting a RecursionError.
    except (ValueError, RecursionError):
        return None, "invalid_json", {}
    if not isinstance(row, dict):
        return None, "not_an_object", {}
    text = field_of(row, column)
    if text is None:
        return None, "null", row
    if not isinstance(text, str):
        return None, "not_text", row
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return None, "lone_surrogate", row
    return text, "", row
