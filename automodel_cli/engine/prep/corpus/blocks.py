"""Cuts a stream of bytes into blocks that end where a line, or a run of blank lines, ends.

A block holds about `PIECE_BYTES`. A line of any length is kept whole up to a limit, beyond which
no document can be taken from it: the rest of it is passed over, so memory stays bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from automodel_cli.engine.prep.corpus.foreign import foreign
from automodel_cli.engine.prep.corpus.pieces import PIECE_BYTES, Position
from automodel_cli.engine.prep.corpus.streams import InputFile, Readable, read_fully, unpacked
from automodel_cli.engine.prep.left_out import NO_BLANK_LINE

BOM = b"\xef\xbb\xbf"
# Possessive, so that a megabyte of blank lines is looked at once.
BLANK_LINES = re.compile(rb"\n(?:[^\S\n]*+\n)++")
_TEXT_FOLLOWS = re.compile(rb"[^\S\n]*+\S")


Rejection = tuple[str, str]
Refuse = Callable[[bytes], Rejection | None]


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
        too_long: What a unit of so many bytes is called.
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
        # Doubled, since each look goes over all of the bytes again.
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
