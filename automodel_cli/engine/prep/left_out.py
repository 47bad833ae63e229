"""What is said about documents that were left out: how many, why, where the first is, and what would help.

`first_skipped` is the first document of each reason: `where` is the place, `found` what is there.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from automodel_cli.engine.prep.corpus.clean import BROKEN, ENCODINGS
from automodel_cli.engine.prep.source import SourceDescription
from automodel_cli.errors import DataError

FirstSkipped = Mapping[str, Mapping[str, str]]

STDIN_NAME = "standard input"
JSON_ARRAY = "a JSON array, not JSON lines"
PRETTY_JSON = "pretty-printed JSON, not JSON lines"
NO_BLANK_LINE = "without a blank line"
WHOLE_FILE = "in a file that is one document"

_PHRASES = {
    "null": "null",
    "empty": "empty, or white space alone",
    "too_large": "larger than --max-document-bytes",
    "invalid_utf8": "not UTF-8",
    "lone_surrogate": "no Unicode: half of a surrogate pair, which no UTF-8 can hold",
    "invalid_json": "a line that is not JSON",
    "not_an_object": "JSON, but no object",
    "not_text": "no text, but another kind of value",
    "invalid_csv": "a row with another number of columns than the header",
}
_UNPACK = {".gz": "gzip -dc", ".zst": "zstd -dc", ".bz2": "bzip2 -dc"}
# Every large corpus has a few of these, and no setting would change that.
_USUAL = ("null", "empty", "lone_surrogate")


class Skipping(Protocol):
    """Something that was read, in which documents were left out."""

    @property
    def skipped(self) -> Mapping[str, int]:
        """How many, by reason."""
        ...

    @property
    def first_skipped(self) -> FirstSkipped:
        """The first of each reason."""
        ...


def add_skipped(
    skipped: Mapping[str, int], first_skipped: FirstSkipped, more: Skipping
) -> tuple[dict[str, int], FirstSkipped]:
    """Counts and first documents of what came before and of what comes behind it, by reason in order of their names."""
    counts = Counter(skipped) + Counter(more.skipped)
    return dict(sorted(counts.items())), dict(sorted({**more.first_skipped, **first_skipped}.items()))


def describe(reason: str, found: str) -> str:
    """What a document is that was left out for a reason.

    >>> describe("too_large", "199 bytes")
    'larger than --max-document-bytes (199 bytes)'
    """
    return _PHRASES.get(reason, reason) + (f" ({found})" if found else "")


def nothing_left(
    skipped: Mapping[str, int],
    first_skipped: FirstSkipped,
    max_document_bytes: int,
    *,
    source: SourceDescription,
    of: str = "",
) -> DataError:
    """The error for a source of which no document is left.

    Args:
        skipped: Documents left out, by reason.
        first_skipped: The first of each.
        max_document_bytes: The limit.
        source: What was read.
        of: Beginning of the message, such as the part that was prepared.
    """
    total = sum(skipped.values())
    if not total:
        message = f"{of}the source holds no text" if not of else of.removesuffix(": ")
        where = source.names[0] if len(source.names) == 1 else None
        return DataError(
            message, where=where, help="the files are empty, or hold blank lines alone, or a header without rows"
        )
    if set(skipped) == {"empty"}:
        of = of or "the source holds no text: "
    reasons = []
    for reason in skipped:
        first = first_skipped.get(reason, {})
        what = describe(reason, first.get("found", ""))
        help_ = remedy(reason, first, max_document_bytes, can_convert=source.can_be_converted) or None
        reasons.append((reason, what, first.get("where"), help_))
    counts = ", ".join(f"{number:,} {reason}" for reason, number in skipped.items())
    if len(reasons) > 1:
        problems = [
            DataError(f"the first {reason} is {what}", where=at, help=help_) for reason, what, at, help_ in reasons
        ]
        return DataError(f"{of}all {total:,} documents were left out: {counts}", problems=problems)
    (_, what, where, help_), *_ = reasons
    if total == 1:
        return DataError(f"{of}the only document was left out ({counts}): it is {what}", where=where, help=help_)
    message = f"{of}all {total:,} documents were left out: {counts}; the first is {what}"
    return DataError(message, where=where, help=help_)


def left_out_notes(first_skipped: FirstSkipped, max_document_bytes: int, *, can_convert: bool) -> list[str]:
    """What a user can do about documents that were left out, one sentence for each reason."""
    helps = {
        reason: remedy(reason, first, max_document_bytes, can_convert=can_convert)
        for reason, first in first_skipped.items()
        if reason not in _USUAL
    }
    return [f"{reason}, first at {first_skipped[reason]['where']}: {text}" for reason, text in helps.items() if text]


def remedy(reason: str, first: Mapping[str, str], max_document_bytes: int, *, can_convert: bool) -> str:
    """What would help against a reason; empty where nothing would."""
    found, name = first.get("found", ""), first.get("where", "").rpartition(":")[0]
    if reason == "too_large":
        option = f"raise --max-document-bytes, which is {max_document_bytes:,}"
        is_joined = NO_BLANK_LINE in found or WHOLE_FILE in found
        return f"--text-documents line makes each line a document; or {option}" if is_joined else option
    if reason in ("null", "not_text"):
        return "name the column or field that holds the text with --text-column"
    if not can_convert:
        return ""
    if reason == "invalid_utf8":
        return _about_encoding(name, found)
    if found == JSON_ARRAY:
        return _converted(name, "jq -c '.[]'", ".lines.jsonl")
    if found == PRETTY_JSON:
        return _converted(name, "jq -c .", ".lines.jsonl")
    if reason in ("invalid_json", "not_an_object"):
        return 'each line must be one JSON object, such as {"text": "..."}'
    if reason == "invalid_csv":
        return "a field with a comma, a quote or an end of line in it stands in double quotes"
    return ""


def shell_word(text: str) -> str:
    r"""A word of a command line that a shell reads as `text`, also where it is a path that is not UTF-8.

    >>> shell_word("a b.txt"), shell_word("caf\udce9")
    ("'a b.txt'", "$'caf\\xe9'")
    """
    if text.isprintable():
        return shlex.quote(text)
    # Only printable ASCII stays; what is no UTF-8 was read as surrogates and goes back to its bytes.
    content = text.encode("utf-8", "surrogateescape")
    return "$'" + "".join(chr(b) if 32 <= b < 127 and b not in b"'\\" else f"\\x{b:02x}" for b in content) + "'"


def _about_encoding(name: str, found: str) -> str:
    if Path(name).suffix.lower() in (".parquet", ".pq"):
        return "the column must hold UTF-8; write the file again with its texts converted"
    encoding = next((known for known in ENCODINGS if known in found), None)
    if encoding is not None:
        return _converted(name, f"iconv -f {encoding} -t UTF-8", ".utf8")
    if BROKEN in found:
        return _converted(name, "iconv -c -f UTF-8 -t UTF-8", ".utf8") + "; that leaves the broken bytes out"
    if "unknown encoding" in found:
        guess = "" if name == STDIN_NAME else f", which `file -i {shell_word(name)}` may tell"
        return f"convert it to UTF-8 with iconv, from the encoding that it has{guess}"
    if "compressed by" in found:
        return "give the file the ending of its compression, .gz, .zst or .bz2, after the one that it has"
    if "a parquet file" in found:
        return "give it the ending .parquet"
    return "only text, JSON lines, CSV and parquet can be read; take the text out of it first"


def _converted(name: str, command: str, ending: str) -> str:
    """How to convert a file: a command line that can be pasted."""
    if name == STDIN_NAME:
        return f"pipe it through `{command}` first"
    path = Path(name)
    unpack = _UNPACK.get(path.suffix.lower())
    plain = path.with_suffix("") if unpack else path
    target = plain.with_suffix(ending if ending.endswith(".jsonl") else ending + plain.suffix)
    source = f"./{name}" if name.startswith("-") else name
    line = f"{unpack} {shell_word(source)} | {command}" if unpack else f"{command} {shell_word(source)}"
    output = f"./{target}" if str(target).startswith("-") else str(target)
    return f"`{line} > {shell_word(output)}` makes a file that can be read"
