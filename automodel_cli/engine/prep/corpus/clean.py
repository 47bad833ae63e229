"""Takes out of a piece's rows what cannot be a document, and says why and what it is instead.

Bytes that are not UTF-8 are another encoding, or no text at all; `foreign` and `not_utf8` guess which.

The usual piece has nothing bad in it; that is found without looking at any text as a Python object.
"""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from automodel_cli.engine.prep.corpus.pieces import Rows

if TYPE_CHECKING:
    import pyarrow as pa


_LOOKED_AT = 4096
# A sample with fewer zero bytes is not taken for UTF-16 or UTF-32: they may be there by chance.
_MIN_ZEROS = 16
_MIN_SHARE = 0.1
# High bytes of UTF-16 that one text may have: alphabets and punctuation, each of 256 characters.
_MAX_ALPHABETS = 4
# iconv reads the byte-order mark itself; that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_SIGNATURES = (
    (b"%PDF-", "a PDF document"),
    (b"PK\x03\x04", "a zip archive, as .docx, .xlsx and .epub are too"),
    (b"\x1f\x8b\x08", "compressed by gzip"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
    (b"BZh91AY&SY", "compressed by bzip2"),
    (b"\xfd7zXZ\x00", "compressed by xz"),
    (b"PAR1\x15", "a parquet file"),
    (b"ARROW1\x00\x00", "an Arrow file"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\x7fELF", "a program"),
    (b"\x89PNG\r\n", "an image"),
    (b"\xff\xd8\xff", "an image"),
)
# As iconv names them, the longer names first; messages hold one of them, and the advice is found by it.
ENCODINGS = ("UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE", "UTF-16", "UTF-32", "ISO-8859-1", "WINDOWS-1252")
BROKEN = "UTF-8 with broken characters"
_UNDEFINED_1252 = frozenset(b"\x81\x8d\x8f\x90\x9d")


@dataclass(frozen=True)
class CleanTexts:
    """The documents of a piece.

    Attributes:
        texts: `large_string`, no nulls.
        skipped: Rows left out, by reason.
        first: The first row left out for each reason, in order: its number, and what was found there.
    """

    texts: pa.LargeStringArray
    skipped: Mapping[str, int]
    first: Mapping[str, tuple[int, str]]

    @property
    def first_bad(self) -> tuple[int, str] | None:
        """Number of the first row left out, and the reason; `None` when there is none."""
        return next(((number, reason) for reason, (number, _) in self.first.items()), None)


def clean(rows: Rows, max_document_bytes: int) -> CleanTexts:
    r"""The rows that are documents: not null, not blank, valid UTF-8, at most `max_document_bytes`.

    >>> import pyarrow as pa
    >>> found = clean(Rows(pa.array([b"a", None, b" ", b"caf\xe9"]), lambda row: row + 1), 10)
    >>> found.texts.to_pylist(), found.first_bad
    (['a'], (2, 'null'))
    """
    import pyarrow as pa

    content = everything = rows.texts.cast(pa.large_binary())
    reasons = dict(rows.rejected)
    if content.null_count or _any_longer(content, max_document_bytes):
        reasons |= _unfit(content, max_document_bytes, reasons)
        content = _without(content, reasons)
    kept = [row for row in range(len(rows.texts)) if row not in reasons] if reasons else None
    try:
        texts = content.cast(pa.large_string())
    except pa.ArrowInvalid:
        broken = {row: why_not_utf8(value.as_py()) for row, value in enumerate(content)}
        broken = {row: why for row, why in broken.items() if why}
        texts = _without(content, broken).cast(pa.large_string())
        reasons |= {_original(kept, row): why for row, why in broken.items()}
        kept = [row for row in range(len(rows.texts)) if row not in reasons]
    blank = _blank_rows(texts)
    if blank:
        texts = _without(texts, dict.fromkeys(blank, ""))
        reasons |= {_original(kept, row): "empty" for row in blank}
    first: dict[str, int] = {}
    for row in sorted(reasons):
        first.setdefault(reasons[row], row)
    found = {
        reason: (rows.number(row), rows.found.get(row) or _found(reason, everything[row].as_buffer(), rows.unit))
        for reason, row in first.items()
    }
    return CleanTexts(texts, Counter(reasons.values()), found)


def _found(reason: str, content: pa.Buffer | None, unit: str) -> str:
    """What is in a row that is no document, where that says more than the reason."""
    if content is None:
        return ""
    if reason == "too_large":
        return f"{content.size:,} bytes {unit}".rstrip()
    return not_utf8(content.to_pybytes()) if reason == "invalid_utf8" else ""


def _any_longer(content: pa.LargeBinaryArray, limit: int) -> bool:
    import pyarrow.compute as pc

    longest = pc.max(pc.binary_length(content)).as_py()
    return longest is not None and longest > limit


def _unfit(content: pa.LargeBinaryArray, limit: int, known: Mapping[int, str]) -> dict[int, str]:
    import pyarrow.compute as pc

    found = {}
    for row, length in enumerate(pc.binary_length(content).to_pylist()):
        if length is None:
            found[row] = "null"
        elif length > limit:
            found[row] = "too_large"
    return {row: reason for row, reason in found.items() if row not in known}


def _blank_rows(texts: pa.LargeStringArray) -> list[int]:
    """Rows without a character that is not white space, in the sense of `str.isspace`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    # An empty text is no space for Arrow. A comparison of lengths with 0 would import pandas.
    is_empty = pc.invert(pc.cast(pc.binary_length(texts), pa.bool_()))
    blank = pc.or_(pc.utf8_is_space(texts), is_empty)
    if not pc.any(blank).as_py():
        return []
    rows: list[int] = pc.indices_nonzero(blank).to_pylist()
    return rows


def _without(values: pa.Array, rows: Mapping[int, str]) -> pa.Array:
    import pyarrow as pa

    return values.take(pa.array([row for row in range(len(values)) if row not in rows], pa.int64()))


def _original(kept: list[int] | None, row: int) -> int:
    return row if kept is None else kept[row]


def why_not_utf8(value: bytes) -> str:
    """Why these bytes are no UTF-8; empty when they are."""
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return "lone_surrogate" if _holds_surrogates(value) else "invalid_utf8"
    return ""


def _holds_surrogates(value: bytes) -> bool:
    try:
        value.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def foreign(begin: bytes) -> str:
    r"""What a file is that begins so, if it is no UTF-8 text; else an empty string.

    UTF-16 of English text is valid UTF-8, with a zero byte after each letter, so it has to be looked for.

    >>> foreign(b"%PDF-1.7"), foreign("text".encode("utf-16")), foreign(b"a\0b")
    ('a PDF document', 'UTF-16', '')
    """
    for sign, name in (*_MARKS, *_SIGNATURES):
        if begin.startswith(sign):
            return name
    sample = begin[:_LOOKED_AT]
    zeros = [sample[place::4].count(0) for place in range(4)]
    if sum(zeros) < _MIN_ZEROS:
        return ""
    quarter = len(sample) / 4
    first, second, third, fourth = (count / quarter for count in zeros)
    if min(third, fourth) > 0.9 and first < 0.5:
        return "UTF-32LE"
    if min(first, second) > 0.9 and fourth < 0.5:
        return "UTF-32BE"
    even, odd = first + third, second + fourth
    if odd > 2 * _MIN_SHARE and not even and _reads_as(sample, "utf-16-le", sample[1::2]):
        return "UTF-16LE"
    if even > 2 * _MIN_SHARE and not odd and _reads_as(sample, "utf-16-be", sample[::2]):
        return "UTF-16BE"
    return ""


def _reads_as(sample: bytes, encoding: str, high_bytes: bytes) -> bool:
    """Whether bytes are text of an alphabet, or of several, in a form of UTF-16."""
    # The end may be cut inside a character.
    text = sample[: len(sample) & ~1].decode(encoding, "replace")[:-1]
    return len(set(high_bytes)) <= _MAX_ALPHABETS and all(sign.isprintable() or sign.isspace() for sign in text)


def not_utf8(value: bytes) -> str:
    r"""What a document probably is that is no UTF-8, with its first wrong byte.

    >>> not_utf8(b"caf\xe9"), not_utf8(b"it\x92s")
    ('probably Latin-1 (ISO-8859-1): byte 0xE9 at offset 3', 'probably WINDOWS-1252: byte 0x92 at offset 2')
    """
    whole = foreign(value)
    if whole:
        return whole
    try:
        value.decode("utf-8")
    except UnicodeDecodeError as error:
        at = error.start
    else:
        return ""
    sample = value[max(0, at - _LOOKED_AT // 2) : at + _LOOKED_AT // 2]
    return f"{_kind_of(sample)}: byte 0x{value[at]:02X} at offset {at:,}"


def _kind_of(sample: bytes) -> str:
    decoded = sample.decode("utf-8", "replace")
    num_broken = decoded.count("\ufffd")
    if sum(sign > "\x7f" for sign in decoded) - num_broken > num_broken:
        return BROKEN
    high = [byte for byte in sample if byte >= 0x80]
    # In alphabets other than Latin, nearly every byte is high.
    if 0 in sample or len(high) > 0.4 * len(sample) or _UNDEFINED_1252 & set(high):
        return "an unknown encoding"
    return "probably WINDOWS-1252" if min(high) < 0xA0 else "probably Latin-1 (ISO-8859-1)"
