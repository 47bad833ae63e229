"""Documents as preparation takes them in: Arrow batches of clean text, each with a cursor behind it.

A source is the same sequence of documents at every reading. It knows nothing of tokens, and
reading on from any batch's cursor, in another process and as often as needed, gives exactly the
documents that came after that batch. Whatever cannot be a document is left out and counted here,
so nobody downstream has to ask whether a text is null, blank or not UTF-8.

This module imports only the standard library: the command line reads it to describe its options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import pyarrow as pa

    from automodel_cli.engine.shards.manifest import SourceRecord

MAX_DOCUMENT_BYTES = 50_000_000
RETRY_SECONDS = 600.0


class TextDocuments(StrEnum):
    """What is one document in a plain text file."""

    FILE = "file"
    LINE = "line"
    BLOCK = "block"


class OnBadDocument(StrEnum):
    """What happens when something in the source cannot be a document."""

    SKIP = "skip"
    FAIL = "fail"


class StdinFormat(StrEnum):
    """What standard input holds."""

    TEXT = "text"
    JSONL = "jsonl"


def ignore_wait(_: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class SourceOptions:
    """Which documents a user asks for.

    Attributes:
        sources: A preset's name, `-` for standard input, or files and glob patterns; may be empty
            where `dataset` is given.
        dataset: A data set on the Hugging Face hub that is no preset.
        set_name: Its configuration, such as `sample-10BT`; `None` takes the preset's or the only one.
        split: Split of a data set on the hub; `None` is `train`.
        text_column: Column that holds the text; `None` takes the preset's, or `text`.
        revision: Branch, tag or commit on the hub; `None` is the newest.
        pinned_revision: Commit that an earlier run of the same preparation recorded: it is read
            instead of what `revision` names today, so that the run continues with the same bytes.
        text_documents: What is one document in text files; `None` takes each file whole, or, where
            there is only one file, cuts it at blank lines into pieces of 8 KiB and more.
        stdin_format: What `-` holds; `None` asks its first byte.
        max_document_bytes: Longer documents, in bytes of UTF-8, are bad.
        on_bad_document: Leave bad documents out and count them, or stop at the first.
        retry_seconds: How long a lost connection is tried again before the run ends.
        on_wait: Told about every wait for a lost connection.
    """

    sources: tuple[str, ...] = ()
    dataset: str | None = None
    set_name: str | None = None
    split: str | None = None
    text_column: str | None = None
    revision: str | None = None
    pinned_revision: str | None = None
    text_documents: TextDocuments | None = None
    stdin_format: StdinFormat | None = None
    max_document_bytes: int = MAX_DOCUMENT_BYTES
    on_bad_document: OnBadDocument = OnBadDocument.SKIP
    retry_seconds: float = RETRY_SECONDS
    on_wait: Callable[[str], None] = ignore_wait


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
        kind: `embedded`, `files`, `hub` or `stdin`.
        names: The files, or what stands for them.
        text_column: `None` where text has no columns.
        resumable: Whether `batches` takes a start.
    """

    kind: str
    names: tuple[str, ...]
    text_column: str | None
    resumable: bool


class Source(Protocol):
    """A sequence of documents that is the same at every reading."""

    @property
    def total_bytes(self) -> int | None:
        """About the sum of `source_bytes` over all batches; `None` when it is not known."""
        ...

    def record(self) -> SourceRecord:
        """What the manifest says of this source."""
        ...

    def describe(self) -> SourceDescription:
        """What would be read; reads no document."""
        ...

    def batches(self, start: str | None = None) -> Iterator[DocumentBatch]:
        """The documents in order, in batches of about 4 MB of text or 1,024 documents and more.

        Where one batch ends depends on the source alone, so a reading that starts at a cursor has
        the same batches as one that came by.

        Args:
            start: A cursor of this source; `None` begins with the first document.

        Raises:
            DataError: The source cannot be read, `start` is no cursor of it, or, if that is what was
                asked for, a document is bad.
        """
        ...

    def partition(self, index: int, count: int) -> Source:
        """Part `index` (from 0) of `count`: together the parts hold every document once.

        Raises:
            UsageError: The source can be read only as a whole.
        """
        ...
