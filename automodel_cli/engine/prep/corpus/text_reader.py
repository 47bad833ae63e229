"""Reads plain text: a file, a line, or a stretch between blank lines is one document.

`blocks` cuts a file, of JSON lines too, into blocks of about `PIECE_BYTES` that end where a line, or a run of blank
lines, ends. A line is kept whole up to a limit, beyond which no document can be taken from it: the rest of it is
passed over, so memory stays bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from automodel_cli.engine.prep.corpus.clean import foreign
from automodel_cli.engine.prep.corpus.input_file import InputFile, Readable, read_fully, unpacked
from automodel_cli.engine.prep.corpus.pieces import PIECE_BYTES, Piece, Position, Rows, rejected_rows
from automodel_cli.engine.prep.left_out import NO_BLANK_LINE, WHOLE_FILE

_LINES_AROUND = re.compile(rb"\A(?:[^\S\n]*+\n)++|[\r\n]++\Z")
BOM = b"\xef\xbb\xbf"
# Possessive, so that a megabyte of blank lines is scanned once.
BLANK_LINES = re.compile(rb"\n(?:[^\S\n]*+\n)++")
_TEXT_FOLLOWS = re.compile(rb"[^\S\n]*+\S")


Rejection = tuple[str, str]
Refuse = Callable[[bytes], Rejection | None]


class _TextReader:
    def __init__(self, file: InputFile, max_document_bytes: int) -> None:
        self.name = file.name
        self.num_bytes = file.num_bytes if file.codec is None else None
        self._file = file
        self._limit = max_document_bytes


class LineReader(_TextReader):
    """Every line that is not blank is a document, without its end of line; longer ones than the limit are left out."""

    def pieces(self, start: Position | None) -> Iterator[Piece]:
        """Blocks of whole lines."""
        for block in blocks(self._file, start, LINES, self._limit):
            yield Piece(block.number, block.end, block.num_bytes, partial(_lines, block))


class BlockReader(_TextReader):
    """Every stretch between blank lines is a document.

    Args:
        file: The file.
        max_document_bytes: Longer stretches are left out.
        min_bytes: Shorter stretches are joined with those that follow, blank lines and all, until
            they are that long; 0 gives every stretch alone, without the lines around it.
    """

    def __init__(self, file: InputFile, max_document_bytes: int, min_bytes: int = 0) -> None:
        super().__init__(file, max_document_bytes)
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


class WholeReader(_TextReader):
    """The whole file is one document; no more of it is read than the limit and one byte."""

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


@dataclass(frozen=True)
class Block:
    """A stretch of a file.

    Attributes:
        number: Blocks before it.
        content: Its bytes, without a byte-order mark; empty where it is rejected.
        first_line: Number of its first line, from 1.
        end: Position after it: blocks, bytes and lines before it.
        num_bytes: Bytes of the unpacked file that it takes.
        rejected: Why there is no text in it, as a reason and what was found; `None` where there may be.
    """

    number: int
    content: bytes
    first_line: int
    end: Position
    num_bytes: int
    rejected: Rejection | None = None


@dataclass(frozen=True)
class Boundary:
    """Where a block may end.

    Attributes:
        first: Where the first whole unit in some bytes ends; 0 when none does.
        last: Where the last one ends; 0 when none does.
        too_long: What a unit that is too long is called; takes its bytes.
    """

    first: Callable[[bytes], int]
    last: Callable[[bytes], int]
    too_long: str = "{:,} bytes"


def _first_line_end(content: bytes) -> int:
    return content.find(b"\n") + 1


def _last_line_end(content: bytes) -> int:
    return content.rfind(b"\n") + 1


def _blank_ends(content: bytes) -> Iterator[int]:
    # A run of blank lines at the very end may go on in what is not read yet.
    ends = (match.end() for match in BLANK_LINES.finditer(content))
    return (end for end in ends if _TEXT_FOLLOWS.match(content, end))


def _first_blank_end(content: bytes) -> int:
    return next(_blank_ends(content), 0)


def _last_blank_end(content: bytes) -> int:
    return max(_blank_ends(content), default=0)


LINES = Boundary(_first_line_end, _last_line_end, "a line of {:,} bytes")
BLANK = Boundary(_first_blank_end, _last_blank_end, f"{{:,}} bytes {NO_BLANK_LINE}")
_WHOLE_FILE = Boundary(lambda _: 0, lambda _: 0)


def no_text(begin: bytes) -> Rejection | None:
    """Why a file that begins so holds no text at all."""
    found = foreign(begin)
    return ("invalid_utf8", f"the whole file is {found}") if found else None


def blocks(
    file: InputFile, start: Position | None, boundary: Boundary, max_unit_bytes: int, refuse: Refuse = no_text
) -> Iterator[Block]:
    """The blocks of a file from a position on.

    Args:
        file: Its content is unpacked by its ending.
        start: `end` of a block; `None` is the beginning.
        boundary: What a block ends with.
        max_unit_bytes: A line, or a stretch without a blank line, that is longer is passed over.
        refuse: Says of a file's beginning why the file is one rejected block.
    """
    target = PIECE_BYTES
    number, offset, line = start or (0, 0, 1)
    with unpacked(file, offset) as stream:
        held = b""
        while True:
            held += read_fully(stream, target - len(held))
            if not held:
                return
            rejected = refuse(held) if offset == 0 else None
            end, held = (0, held) if rejected else _find_end(stream, held, boundary, max_unit_bytes, target)
            if end:
                content, held = held[:end], held[end:]
                position = (number + 1, offset + end, line + content.count(b"\n"))
                yield Block(number, content.removeprefix(BOM) if offset == 0 else content, line, position, end)
            else:
                end, lines, held = _pass_over(stream, held, _WHOLE_FILE if rejected else boundary, target)
                position = (number + 1, offset + end, line + lines)
                rejected = rejected or ("too_large", boundary.too_long.format(end))
                yield Block(number, b"", line, position, end, rejected)
            number, offset, line = position


def _find_end(stream: Readable, held: bytes, boundary: Boundary, limit: int, target: int) -> tuple[int, bytes]:
    """Read on until the bytes hold an end; gives where it is, 0 when the unit is longer than the limit."""
    wanted = target
    while len(held) >= wanted:
        # More may be held than is wanted; a reading that starts here would not see it.
        end = boundary.last(held[:wanted])
        if end or wanted > limit:
            return end, held
        # Doubled, since each search scans all of the bytes again.
        wanted = min(2 * wanted, limit + target)
        held += read_fully(stream, wanted - len(held))
    return len(held), held


def _pass_over(stream: Readable, held: bytes, boundary: Boundary, target: int) -> tuple[int, int, bytes]:
    """Read to the end of a unit without keeping it; gives its bytes and lines, and what was read beyond."""
    passed = lines = 0
    while True:
        end = boundary.first(held)
        more = b"" if end else read_fully(stream, target)
        if not more:
            end = end or len(held)
            return passed + end, lines + held[:end].count(b"\n"), held[end:]
        # An end may lie across two readings, so the last bytes are looked at again.
        done, tail = held[:-target], held[-target:]
        passed += len(done)
        lines += done.count(b"\n")
        held = tail + more
