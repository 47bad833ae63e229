"""Where documents come from: the embedded text, files, or the hub.

A source yields documents one at a time, always in the same order. It knows nothing of tokens.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from automodel_cli.engine.prep.package_data import SHA256, SHAKESPEARE, read_asset
from automodel_cli.engine.prep.presets import PRESETS, HubLocation
from automodel_cli.engine.shards.manifest import SourceRecord
from automodel_cli.errors import DataError, UsageError

_TEXT_SUFFIXES = (".txt", ".jsonl")
# A scene begins with the play's title in capitals and the number of the act or scene.
_SCENE = re.compile(r"^(?=[A-Z' ]+\n(?:ACT|SCENE) [IVX]+[.,])", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n\s*\n")


class Document(NamedTuple):
    """One document.

    Attributes:
        text: What is tokenized.
        source_bytes: Bytes of the source that it took, for the estimate of what is left.
    """

    text: str
    source_bytes: int


class Source(Protocol):
    """A sequence of documents that is the same at every reading.

    Attributes:
        total_bytes: Sum of `source_bytes` over all documents, or `None` when it is not known.
    """

    total_bytes: int | None

    def record(self) -> SourceRecord:
        """What the manifest says of this source."""
        ...

    def documents(self) -> Iterator[Document]:
        """All documents, from the first."""
        ...


class EmbeddedText:
    """The text that ships with the package; one scene is one document."""

    def __init__(self) -> None:
        self._scenes = [scene for scene in _SCENE.split(read_asset(SHAKESPEARE)) if scene]
        self.total_bytes: int | None = sum(len(scene.encode()) for scene in self._scenes)

    def record(self) -> SourceRecord:
        """Name and hash of the text."""
        return SourceRecord("shakespeare", sha256=SHA256[SHAKESPEARE])

    def documents(self) -> Iterator[Document]:
        """The scenes, play by play."""
        return (Document(scene, len(scene.encode())) for scene in self._scenes)


class LocalFiles:
    """Text files, one document each, and JSON-lines files, one document per line.

    A text file that stands alone is cut into documents at blank lines, because validation
    needs documents of its own.

    Args:
        pattern: A path, or a glob pattern; the files are read in the order of their names.
        text_column: The field of a JSON line that holds the text.

    Raises:
        UsageError: No file matches, or a file is of another kind.
    """

    def __init__(self, pattern: str, text_column: str) -> None:
        self._pattern = pattern
        self._text_column = text_column
        self._paths = _text_files(pattern)
        self.total_bytes: int | None = sum(path.stat().st_size for path in self._paths)

    def record(self) -> SourceRecord:
        """The pattern, and one hash of all names and contents."""
        digest = hashlib.sha256()
        for path in self._paths:
            with path.open("rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return SourceRecord(self._pattern, sha256=digest.hexdigest())

    def documents(self) -> Iterator[Document]:
        """The documents of each file in turn.

        Raises:
            DataError: A file is not UTF-8, or a line is not a JSON object with a text.
        """
        alone = len(self._paths) == 1
        for path in self._paths:
            if path.suffix == ".jsonl":
                yield from _json_documents(path, self._text_column)
            else:
                text = _read_text(path)
                pieces = cut_at_blank_lines(text) if alone else [text]
                yield from (Document(piece, len(piece.encode())) for piece in pieces)


class HubDataset:
    """A data set on the Hugging Face hub, streamed in its own order.

    Args:
        name: The preset's name.
        location: Where it lies.
        text_column: Column to read instead of the preset's; `text` leaves the preset's.

    Raises:
        UsageError: The package `datasets` is not installed.
    """

    total_bytes: int | None = None

    def __init__(self, name: str, location: HubLocation, text_column: str) -> None:
        self._name = name
        self._location = location
        self._text_column = location.text_column if text_column == "text" else text_column

    def record(self) -> SourceRecord:
        """Repository and subset; the hub's text is not hashed, because it is never all here."""
        return SourceRecord(f"{self._name}: {self._location.path} {self._location.config or ''}".rstrip())

    def documents(self) -> Iterator[Document]:
        """The rows, or groups of rows, of the training split.

        Raises:
            UsageError: The package `datasets` is not installed.
            DataError: The hub cannot be reached or does not have the data set.
        """
        rows = (self._text_of(row) for row in self._rows())
        texts = rows if self._location.title_pattern is None else join_rows(rows, self._location.title_pattern)
        return (Document(text, len(text)) for text in texts)

    def _rows(self) -> Iterator[dict[str, Any]]:
        try:
            from datasets import load_dataset
        except ModuleNotFoundError as error:
            raise UsageError(
                f"the preset {self._name!r} is read with the package `datasets`, which is not installed",
                help="pip install 'amcli[hub]'; `amcli prep shakespeare` and files of your own need no package",
            ) from error
        try:
            yield from load_dataset(self._location.path, self._location.config, split="train", streaming=True)
        # The client raises errors of httpx, fsspec, pyarrow and its own; to the user all are one.
        except Exception as error:
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise DataError(
                f"{self._location.path} cannot be read from the hub: {reason}",
                help="check the network; `amcli prep shakespeare` works without",
            ) from error

    def _text_of(self, row: dict[str, Any]) -> str:
        text = row.get(self._text_column)
        if not isinstance(text, str):
            raise DataError(
                f"a row of {self._location.path} has no text in {self._text_column!r}, only {sorted(row)}",
                help="name the column with --text-column",
            )
        return text


def open_source(source: str, text_column: str) -> Source:
    """The source that a user names: a preset, a path or a pattern.

    Raises:
        UsageError: It is neither a preset nor files.
    """
    preset = PRESETS.get(source)
    if preset is None:
        return LocalFiles(source, text_column)
    return EmbeddedText() if preset.hub is None else HubDataset(preset.name, preset.hub, text_column)


def join_rows(rows: Iterable[str], title_pattern: str) -> Iterator[str]:
    """Join rows into documents, each of which begins with a row that matches `title_pattern`.

    >>> list(join_rows([" = A = ", "x", "y", " = B = ", "z"], " = . = "))
    [' = A = xy', ' = B = z']
    """
    title = re.compile(title_pattern)
    parts: list[str] = []
    for row in rows:
        if parts and title.fullmatch(row):
            yield "".join(parts)
            parts = []
        parts.append(row)
    if parts:
        yield "".join(parts)


def cut_at_blank_lines(text: str, min_chars: int = 8192) -> Iterator[str]:
    r"""Cut a text after blank lines into pieces of at least `min_chars` characters, but the last.

    >>> list(cut_at_blank_lines("ab\n\nc\n\nd", min_chars=4))
    ['ab\n\n', 'c\n\nd']
    """
    begin = 0
    for blank in _BLANK_LINES.finditer(text):
        if blank.end() - begin >= min_chars:
            yield text[begin : blank.end()]
            begin = blank.end()
    if begin < len(text):
        yield text[begin:]


def _text_files(pattern: str) -> list[Path]:
    expanded = Path(pattern).expanduser()
    root = Path(expanded.anchor)
    paths = [expanded] if expanded.is_file() else sorted(root.glob(str(expanded.relative_to(root))))
    if not paths:
        raise UsageError(
            f"{pattern!r} is neither a preset nor a file",
            help=f"presets are {', '.join(PRESETS)}; files are .txt or .jsonl, and a pattern goes in quotes",
        )
    for path in paths:
        if path.suffix not in _TEXT_SUFFIXES or not path.is_file():
            raise UsageError(f"{path} is not a {' or '.join(_TEXT_SUFFIXES)} file", help="give files of text only")
    return paths


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"byte {error.start:,} is not UTF-8", where=str(path), help="convert the file to UTF-8"
        ) from error


def _json_documents(path: Path, text_column: str) -> Iterator[Document]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield Document(_text_of_line(line, text_column, f"{path}:{number}"), len(line))


def _text_of_line(line: bytes, text_column: str, where: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"the line is not JSON: {error}", where=where) from error
    text = row.get(text_column) if isinstance(row, dict) else None
    if not isinstance(text, str):
        keys = f"it has {sorted(row)}" if isinstance(row, dict) else "it is no object"
        raise DataError(
            f"the line has no text in {text_column!r}; {keys}", where=where, help="name the field with --text-column"
        )
    return text
