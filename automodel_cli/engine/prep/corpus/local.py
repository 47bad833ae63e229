"""Files on this machine, and standard input."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from automodel_cli.engine.config.suggest import nearest
from automodel_cli.engine.prep.corpus.choose import KINDS, TEXT, reader_for, text_reader
from automodel_cli.engine.prep.corpus.corpus import Corpus
from automodel_cli.engine.prep.corpus.fingerprint import fingerprint
from automodel_cli.engine.prep.corpus.json_reader import JsonReader
from automodel_cli.engine.prep.corpus.streams import InputFile, local_file
from automodel_cli.engine.prep.documents import SourceDescription
from automodel_cli.engine.prep.options import SourceOptions, StdinFormat, TextDocuments
from automodel_cli.engine.prep.presets import PRESETS
from automodel_cli.engine.shards.manifest import SourceRecord
from automodel_cli.errors import UsageError

STDIN = "-"
_GLOB = frozenset("*?[")


def open_files(options: SourceOptions, column: str) -> Corpus:
    """The documents of the files that the user names.

    Raises:
        UsageError: A name is no file, a pattern matches none, or a file is of another kind.
    """
    paths = find_files(options.sources)
    files = [local_file(path) for path in paths]
    text_documents = options.text_documents
    # A text that stands alone is cut, or no document of it could be held out for validation.
    if text_documents is None and sum(file.ending in TEXT for file in files) > 1:
        text_documents = TextDocuments.FILE
    readers = [reader_for(file, column, options.max_document_bytes, text_documents) for file in files]
    has_columns = any(file.ending not in TEXT for file in files)
    return Corpus(
        readers,
        SourceDescription("files", tuple(map(str, paths)), column if has_columns else None, resumable=True),
        SourceRecord(" ".join(options.sources), sha256=fingerprint(files, [path.name for path in paths])),
        options.max_document_bytes,
        options.on_bad_document,
    )


def find_files(names: Sequence[str]) -> list[Path]:
    """The files of all names and glob patterns: as they are named, each pattern's in order of their names.

    A file that several of them name is there once.

    Raises:
        UsageError: A name is neither a preset nor a file, or a directory.
    """
    found: dict[Path, None] = {}
    for name in names:
        expanded = Path(name).expanduser()
        # A file may have a bracket in its name.
        if expanded.is_file():
            found[expanded] = None
            continue
        if expanded.is_dir():
            raise UsageError(
                f"{name} is a directory", help=f"name its files with a pattern: '{name.rstrip('/')}/*.parquet'"
            )
        root = Path(expanded.anchor)
        matches = sorted(root.glob(str(expanded.relative_to(root)))) if _GLOB & set(name) else []
        files = [path for path in matches if path.is_file()]
        if not files:
            raise _unknown(name)
        found |= dict.fromkeys(files)
    return list(found)


def _unknown(name: str) -> UsageError:
    preset = nearest(name, PRESETS)
    meant = f"did you mean `{preset}`? " if preset else ""
    return UsageError(
        f"{name!r} is neither a preset nor a file",
        help=f"{meant}Presets are {', '.join(PRESETS)}; files end in {KINDS}, and a pattern goes in quotes; "
        "a data set on the hub is named with --dataset",
    )


def open_stdin(options: SourceOptions, column: str, stdin: BinaryIO | None = None) -> Corpus:
    """The documents that come on standard input; they can be read once.

    Args:
        options: What the user asks for.
        column: Field of a JSON line that holds the text.
        stdin: Instead of the process's own.
    """
    stream = io.BufferedReader(_Unseekable(stdin or sys.stdin.buffer))
    file = InputFile("standard input", None, lambda: stream)
    wanted = options.stdin_format or _detect(stream)
    reader = (
        JsonReader(file, column, options.max_document_bytes)
        if wanted == StdinFormat.JSONL
        else text_reader(file, options.max_document_bytes, options.text_documents)
    )
    has_columns = wanted == StdinFormat.JSONL
    return Corpus(
        [reader],
        SourceDescription("stdin", ("standard input",), column if has_columns else None, resumable=False),
        SourceRecord("standard input"),
        options.max_document_bytes,
        options.on_bad_document,
    )


class _Unseekable(io.RawIOBase):
    """A stream that can be peeked into when a buffer is put around it, whatever it is itself."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        content = self._stream.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


def _detect(stream: io.BufferedReader[_Unseekable]) -> StdinFormat:
    """JSON lines begin with a brace; so may text, and then the user has to say so.

    An array of objects is no JSON lines, which its reader says better than text would.
    """
    begin = stream.peek().removeprefix(b"\xef\xbb\xbf").lstrip()
    return StdinFormat.JSONL if begin.removeprefix(b"[").lstrip().startswith(b"{") else StdinFormat.TEXT
