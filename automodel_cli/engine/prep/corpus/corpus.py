"""A source made of readers: cleans their pieces, joins them to batches, and writes the cursors."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from automodel_cli.engine.bounded import UnsoundError, parse_json, shown, typed
from automodel_cli.engine.prep.corpus.clean import CleanTexts, clean
from automodel_cli.engine.prep.corpus.input_file import CODECS
from automodel_cli.engine.prep.corpus.parquet_reader import ParquetReader
from automodel_cli.engine.prep.corpus.pieces import Piece, Position, Reader
from automodel_cli.engine.prep.left_out import describe, remedy
from automodel_cli.engine.prep.prep_options import OnBadDocument
from automodel_cli.engine.prep.source import OWN_CODE, DocumentBatch, SourceDescription
from automodel_cli.engine.shards.manifest import SourceRecord
from automodel_cli.errors import DataError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa

# A batch ends with the piece in which it reaches one of these.
_BATCH_BYTES = 1 << 21
_BATCH_DOCUMENTS = 1024


@dataclass(frozen=True)
class Corpus:
    """The documents that readers give, one reader after the other: the same sequence at every reading.

    Attributes:
        readers: One for each file, in order.
        description: What would be read.
        record: What the manifest says.
        max_document_bytes: Longer documents are bad.
        on_bad_document: What happens to bad documents.
        share: `(index, count)`: only every `count`-th piece is taken, from the one at `index` on.
    """

    readers: Sequence[Reader]
    description: SourceDescription
    record: SourceRecord
    max_document_bytes: int
    on_bad_document: OnBadDocument
    share: tuple[int, int] = (0, 1)

    @property
    def total_bytes(self) -> int | None:
        """About the sum of `source_bytes` over all batches; `None` when it is not known."""
        sizes = [reader.num_bytes for reader in self.readers]
        return None if None in sizes else sum(size or 0 for size in sizes) // self.share[1]

    def batches(self, start: str | None = None) -> Iterator[DocumentBatch]:
        """The documents in order, in batches of about 4 MB of text or 1,024 documents and more.

        Where one batch ends depends on the source alone, so a reading that starts at a cursor has the same batches as
        one that began earlier.

        Args:
            start: A cursor of this source; `None` begins with the first document.

        Raises:
            DataError: A file cannot be read, `start` is no cursor, or a document is bad and must not be.
        """
        cursor = (
            _Cursor()
            if start is None
            else _Cursor.from_json(start, len(self.readers), has_state=self.description.kind == OWN_CODE)
        )
        if start is not None and not self.description.resumable:
            raise DataError(
                "standard input cannot be read on from where it was",
                help="--overwrite begins again; a preparation of files continues",
            )
        return self._batches(cursor)

    def partition(self, index: int, count: int) -> Corpus:
        """Part `index` (from 0) of `count`, by files, else by row groups, else by pieces.

        Together the parts hold every document once.

        Raises:
            UsageError: It is standard input.
        """
        if not self.description.resumable:
            raise UsageError("standard input cannot be divided into parts", help="give files instead")
        if self.share != (0, 1):
            raise ValueError("a part of a source cannot be divided again")
        if len(self.readers) >= count:
            return replace(self, readers=self.readers[index::count])
        parquet = [reader for reader in self.readers if isinstance(reader, ParquetReader)]
        if len(parquet) == len(self.readers):
            return replace(self, readers=_row_groups(parquet, index, count))
        return replace(self, share=(index, count))

    def _batches(self, cursor: _Cursor) -> Iterator[DocumentBatch]:
        batch = _Batch(cursor.documents)
        for file in range(cursor.file, len(self.readers)):
            reader = self.readers[file]
            at = cursor.position if file == cursor.file else None
            # An exception of the user's own code stays what it is.
            is_own = self.description.kind == OWN_CODE
            for piece in reader.pieces(at) if is_own else _guarded(reader, at):
                if (file + piece.number) % self.share[1] != self.share[0]:
                    continue
                batch.add(self._clean(reader, piece), piece, reader.name)
                if batch.is_full:
                    yield batch.close(file, piece.end, self._place(file))
                    batch = _Batch(batch.end_document)
        if batch.texts:
            # This cursor is the end: a reading that starts here is empty.
            yield batch.close(len(self.readers), (), self._place(len(self.readers) - 1))

    def _clean(self, reader: Reader, piece: Piece) -> CleanTexts:
        found = clean(piece.rows(), self.max_document_bytes)
        if found.first_bad is not None and self.on_bad_document == OnBadDocument.FAIL:
            number, reason = found.first_bad
            first = {"where": f"{reader.name}:{number}", "found": found.first[reason][1]}
            help_ = remedy(reason, first, self.max_document_bytes, can_convert=self.description.can_be_converted)
            raise DataError(
                f"the document is bad: it is {describe(reason, first['found'])}",
                where=first["where"],
                help=f"{help_}; " * bool(help_) + "--on-bad-doc skip leaves such documents out and counts them",
            )
        return found

    def _place(self, file: int) -> str:
        name = self.readers[file].name
        return name if len(self.readers) == 1 else f"{name}, file {file + 1:,} of {len(self.readers):,}"


@dataclass(frozen=True)
class _Cursor:
    """Where to read on: the file, the position in it (`None` is its beginning), and documents so far.

    `at` are numbers in JSON; behind those of the user's own code stands its state, a text.
    """

    file: int = 0
    at: tuple[int, ...] | None = None
    documents: int = 0
    state: str | None = None

    @property
    def position(self) -> Position | None:
        return self.at if self.at is None or self.state is None else (*self.at, self.state)

    def to_json(self) -> str:
        return json.dumps({"file": self.file, "at": self.position, "documents": self.documents})

    @classmethod
    def from_json(cls, text: str, num_files: int, *, has_state: bool) -> _Cursor:
        try:
            raw = parse_json(text.encode())
            if not isinstance(raw, dict) or raw.keys() != {"file", "at", "documents"}:
                raise UnsoundError("it must have file, at and documents")
            if has_state and raw["at"] is not None:
                if not isinstance(raw["at"], list) or len(raw["at"]) != 3:
                    raise UnsoundError("at must have two numbers and a state")
                *raw["at"], raw["state"] = raw["at"]
            cursor = typed(cls, raw)
        except UnsoundError as error:
            raise DataError(f"{shown(text)} is no cursor of a source: {error}") from error
        if not 0 <= cursor.file <= num_files:
            raise DataError(f"the cursor is in file {cursor.file + 1:,}, but the source has {num_files:,}")
        return cursor


@dataclass
class _Batch:
    """A batch that is not full yet."""

    first_document: int
    texts: list[pa.LargeStringArray] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    first_skipped: dict[str, dict[str, str]] = field(default_factory=dict)
    source_bytes: int = 0
    _text_bytes: int = 0
    _num_documents: int = 0

    def add(self, found: CleanTexts, piece: Piece, name: str) -> None:
        self.texts.append(found.texts)
        self.skipped.update(found.skipped)
        for reason, (number, what) in found.first.items():
            self.first_skipped.setdefault(reason, {"where": f"{name}:{number}", "found": what})
        self.source_bytes += piece.source_bytes
        self._num_documents += len(found.texts)
        self._text_bytes += found.texts.nbytes

    @property
    def is_full(self) -> bool:
        return self._text_bytes >= _BATCH_BYTES or self._num_documents >= _BATCH_DOCUMENTS

    @property
    def end_document(self) -> int:
        return self.first_document + self._num_documents

    def close(self, file: int, at: Position, place: str) -> DocumentBatch:
        import pyarrow as pa

        texts = self.texts[0] if len(self.texts) == 1 else pa.concat_arrays(self.texts)
        numbers, state = (at[:-1], at[-1]) if at and isinstance(at[-1], str) else (at, None)
        cursor = _Cursor(file, numbers or None, self.end_document, state).to_json()
        return DocumentBatch(
            texts, self.source_bytes, cursor, dict(self.skipped), self.first_document, place, self.first_skipped
        )


def _guarded(reader: Reader, at: Position | None) -> Iterator[Piece]:
    """The reader's pieces; exceptions of its libraries become an error that names the file."""
    import pyarrow as pa

    try:
        yield from reader.pieces(at)
    except (pa.ArrowException, OSError, EOFError) as error:
        reason = str(getattr(error, "strerror", None) or error).split("\n")[0]
        suffix = Path(reader.name).suffix.lower()
        help_ = f"is it whole, and compressed as its ending {suffix} says?" if suffix in CODECS else None
        raise DataError(f"the file cannot be read: {reason}", where=reader.name, help=help_) from error


def _row_groups(readers: Sequence[ParquetReader], index: int, count: int) -> list[ParquetReader]:
    """Every `count`-th row group of all files, counted through, from the one at `index` on."""
    chosen = []
    before = 0
    for reader in readers:
        num_groups = reader.num_groups()
        first = (index - before) % count
        if first < num_groups:
            chosen.append(reader.every(first, count))
        before += num_groups
    return chosen
