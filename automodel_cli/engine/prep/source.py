"""Documents as preparation takes them in: Arrow batches of clean text, each with a cursor behind it.

A source is the same sequence of documents at every reading. It knows nothing of tokens, and
reading on from any batch's cursor, in another process and as often as needed, gives exactly the
documents that came after that batch. Whatever cannot be a document is left out and counted here,
so no later stage has to check whether a text is null, blank or not UTF-8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


# The kind of a source that is the user's own code.
OWN_CODE = "code"


@dataclass(frozen=True)
class DocumentBatch:
    """Consecutive documents of one source, as Arrow.

    Attributes:
        texts: `large_string` without nulls; every text is valid UTF-8 and holds more than white
            space. Empty where everything that was read was bad.
        source_bytes: Bytes of the source that the batch took, for the estimate of what is left.
        cursor: JSON text; `batches(start=cursor)` continues with the document after this batch.
        skipped: Bad documents met while this batch was read, by reason: `null`, `empty`,
            `too_large`, `invalid_utf8`, `lone_surrogate`, `invalid_json`, `not_an_object`, `not_text`,
            `invalid_csv`.
        first_document: Index of the batch's first document in the source, over kept documents.
        place: Where the source is being read, for progress: `a.parquet, file 3 of 14`.
        first_skipped: The first bad document of each reason: `where` it is (`a.jsonl:17`), what was `found`.
    """

    texts: pa.LargeStringArray
    source_bytes: int
    cursor: str
    skipped: Mapping[str, int]
    first_document: int
    place: str
    first_skipped: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceDescription:
    """What would be read, for `--dry-run`.

    Attributes:
        kind: `embedded`, `files`, `hub`, `stdin` or `code`.
        names: The files, or what stands for them.
        text_column: `None` where text has no columns.
        resumable: Whether `batches` takes a start.
    """

    kind: str
    names: tuple[str, ...]
    text_column: str | None
    resumable: bool

    @property
    def can_be_converted(self) -> bool:
        """Whether the user has the files at hand, so that a command may convert them."""
        return self.kind not in ("hub", OWN_CODE)
