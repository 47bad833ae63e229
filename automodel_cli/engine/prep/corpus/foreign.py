"""What bytes are that are not the UTF-8 text they should be: another encoding, or no text at all."""

from __future__ import annotations

import codecs

_LOOKED_AT = 4096
# So few zero bytes stand at odd places alone by chance in no text that was looked at.
_MIN_ZEROS = 16
_MIN_SHARE = 0.1
# Alphabets and punctuation, each of 256 characters, in one text.
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
