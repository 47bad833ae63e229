"""Reads plain text: a file, a line, or a block between blank lines is one document."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial

from automodel_cli.engine.prep.corpus.blocks import BLANK, BLANK_LINES, BOM, LINES, Block, blocks, no_text
from automodel_cli.engine.prep.corpus.pieces import Piece, Position, Rows, rejected_rows
from automodel_cli.engine.prep.corpus.streams import InputFile, read_fully, unpacked
from automodel_cli.engine.prep.left_out import NO_BLANK_LINE, WHOLE_FILE

_LINES_AROUND = re.compile(rb"\A(?:[^\S\n]*+\n)++|[\r\n]++\Z")


class LineReader:
    """Every line that is not blank is a document, without its end of line.

    Args:
        file: The file.
        max_document_bytes: Longer lines are passed over.
    """

    def __init__(self, file: InputFile, max_document_bytes: int) -> None:
        self.name = file.name
        self.num_bytes = file.num_bytes if file.codec is None else None
        self._file = file
        self._limit = max_document_bytes

    def pieces(self, start: Position | None) -> Iterator[Piece]:
        """Blocks of whole lines."""
        for block in blocks(self._file, start, LINES, self._limit):
            yield Piece(block.number, block.end, block.num_bytes, partial(_lines, block))


class BlockReader:
    """Every stretch between blank lines is a document.

    Args:
        file: The file.
        max_document_bytes: Longer stretches are passed over.
        min_bytes: Shorter stretches are joined with those that follow, blank lines and all, until
            they are that long; 0 gives every stretch alone, without the lines around it.
    """

    def __init__(self, file: InputFile, max_document_bytes: int, min_bytes: int = 0) -> None:
        self.name = file.name
        self.num_bytes = file.num_bytes if file.codec is None else None
        self._file = file
        self._limit = max_document_bytes
        self._min_bytes = min_bytes

    def pieces(self, start: Position | None) -> Iterator[Piece]:
        """Blocks of whole stretches."""
        for block in blocks(self._file, start, BLANK, self._limit):
            yield Piece(block.number, block.end, block.num_bytes, partial(self._rows, block))

    def _rows(self, block: Block) -> Rows:
        pieces = list(cut_at_blank_lines(block.content, self._min_bytes))
        lines = [block.first_line + block.content.count(b"\n", 0, begin) for begin, _ in pieces]
        if self._min_bytes:
            return _rows_of([text for _, text in pieces], lines, block, NO_BLANK_LINE)
        alone = [(_LINES_AROUND.sub(b"", text), line) for (_, text), line in zip(pieces, lines, strict=True)]
        return _rows_of(
            [text for text, _ in alone if text], [line for text, line in alone if text], block, NO_BLANK_LINE
        )


class WholeReader:
    """The whole file is one document.

    Args:
        file: The file.
        max_document_bytes: Of a longer file no more than this is read.
    """

    def __init__(self, file: InputFile, max_document_bytes: int) -> None:
        self.name = file.name
        self.num_bytes = file.num_bytes if file.codec is None else None
        self._file = file
        self._limit = max_document_bytes

    def pieces(self, start: Position | None) -> Iterator[Piece]:
        """One piece."""
        if start is not None:
            return
        with unpacked(self._file) as stream:
            # One byte more than is allowed is enough to see that it is too much.
            content = read_fully(stream, self._limit + len(BOM) + 1)
        text, rejected = content.removeprefix(BOM), no_text(content)
        if len(text) > self._limit:
            rejected = rejected or ("too_large", f"more than {self._limit:,} bytes {WHOLE_FILE}")
        rows = partial(_rows_of, [text], [1], None) if rejected is None else partial(rejected_rows, 1, rejected)
        yield Piece(0, (1,), len(content), rows)


def cut_at_blank_lines(content: bytes, min_bytes: int) -> Iterator[tuple[int, bytes]]:
    r"""Cut after blank lines into pieces of at least `min_bytes`, but the last; each with its offset.

    >>> list(cut_at_blank_lines(b"ab\n\nc\n\nd", min_bytes=4))
    [(0, b'ab\n\n'), (4, b'c\n\nd')]
    """
    begin = 0
    for blank in BLANK_LINES.finditer(content):
        if blank.end() - begin >= min_bytes:
            yield begin, content[begin : blank.end()]
            begin = blank.end()
    if begin < len(content):
        yield begin, content[begin:]


def _lines(block: Block) -> Rows:
    found = enumerate(block.content.split(b"\n"), start=block.first_line)
    kept = [(number, line.removesuffix(b"\r")) for number, line in found if line.strip()]
    return _rows_of([line for _, line in kept], [number for number, _ in kept], block)


def _rows_of(texts: Sequence[bytes], numbers: Sequence[int], block: Block | None, unit: str = "") -> Rows:
    import pyarrow as pa

    if block is not None and block.rejected is not None:
        return rejected_rows(block.first_line, block.rejected)
    return Rows(pa.array(texts, pa.large_binary()), numbers.__getitem__, unit=unit)
