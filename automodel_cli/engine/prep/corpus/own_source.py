"""Documents from the user's own code: `FILE.py:NAME` or `package.module:NAME` builds an iterable of them.

They go through the same journal as documents of files, in pieces with a position behind each. The position holds
the state of an iterable that has `state_dict` and `load_state_dict`; any other is built anew, and its documents
before the position are read again and left out.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from automodel_cli.engine.bounded import UnsoundError, parse_json, shown
from automodel_cli.engine.config.config import TARGET, Config
from automodel_cli.engine.config.instantiate import bind, call
from automodel_cli.engine.config.origin import Origin
from automodel_cli.engine.prep.corpus.corpus import Corpus
from automodel_cli.engine.prep.corpus.json_reader import field_of, has_field
from automodel_cli.engine.prep.corpus.pieces import PIECE_BYTES, Piece, Position, Rows, missing_column
from automodel_cli.engine.prep.prep_options import SourceOptions
from automodel_cli.engine.prep.source import OWN_CODE, SourceDescription
from automodel_cli.engine.protocols import StatefulStream, in_users_code
from automodel_cli.engine.shards.manifest import SourceRecord
from automodel_cli.errors import DataError

# Few, so that small sources can be divided into parts, too; a state is asked for after each piece.
_PIECE_DOCUMENTS = 256
_TARGET = re.compile(r".+\.py:[A-Za-z_][\w.]*|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


def names_code(name: str) -> bool:
    """Whether a source is code.

    >>> [names_code(name) for name in ("my/source.py:build", "datasets:load_dataset", "notes.txt", "-")]
    [True, True, False, False]
    """
    return _TARGET.fullmatch(name) is not None and not Path(name).exists()


def open_own(options: SourceOptions, column: str) -> Corpus:
    """The documents that the code named by the user gives; builds nothing yet.

    Args:
        options: What the user asks for.
        column: Field of the text, in documents that are mappings.

    Raises:
        ConfigError: There is no such code, or it does not take the arguments of `--source-args`.
    """
    name = options.sources[0]
    target = name if ".py:" in name else name.replace(":", ".")
    section = ("source",)
    config = Config(
        {"source": {**(options.source_args or {}), TARGET: target}},
        {section: Origin("option", "--source-args"), (*section, TARGET): Origin("option", "SOURCE")},
    )
    factory, arguments = bind(config, "source")
    # A secret is kept out of the manifest, so it may change.
    shown_arguments = {key: value for key, value in config.masked().get("source").items() if key != TARGET}
    label = f"{name} {json.dumps(shown_arguments, sort_keys=True)}" if shown_arguments else name
    return Corpus(
        [OwnReader(name, partial(call, factory, arguments, config, section), column)],
        SourceDescription(OWN_CODE, (name,), None, resumable=True),
        SourceRecord(label, sha256=_hash_of_code(name)),
        options.max_document_bytes,
        options.on_bad_document,
    )


def _hash_of_code(name: str) -> str | None:
    """SHA-256 of the file that is named; `None` where a module is not made from one."""
    place = name.rpartition(":")[0]
    file = place if place.endswith(".py") else getattr(sys.modules.get(place), "__file__", None)
    return None if file is None else hashlib.sha256(Path(file).expanduser().read_bytes()).hexdigest()


class OwnReader:
    """Reads an iterable of documents: texts, bytes of UTF-8, or mappings with a text in a field.

    A position is the number of the piece, the documents before it, and the iterable's state as JSON text, or an empty
    text where it has none.

    Args:
        name: What messages call it.
        build: Makes the iterable, for each reading anew.
        column: Field of the text, in documents that are mappings.
    """

    num_bytes: int | None = None

    def __init__(self, name: str, build: Callable[[], Any], column: str) -> None:
        self.name = name
        self._build = build
        self._column = column

    def pieces(self, start: Position | None) -> Iterator[Piece]:
        """The documents from a position on.

        Raises:
            DataError: The code gives something else than an iterable, or a state that is no JSON.
            Exception: What the code itself raises, with a note of the document.
        """
        number, done, state = start or (0, 0, "")
        with in_users_code(lambda: f"while opening {self.name} at document {done + 1:,}"):
            source = self._open()
            skip = done
            if state and isinstance(source, StatefulStream):
                source.load_state_dict(_object(state, self.name))
                skip = 0
            documents = iter(source)
            for _ in islice(documents, skip):
                pass
        while (piece := self._read(documents, done)).texts:
            end = (number + 1, done + len(piece.texts), self._state(source))
            yield Piece(number, end, piece.num_bytes, partial(piece.rows, self._column, self.name, done))
            number, done, _ = end

    def _read(self, documents: Iterator[Any], done: int) -> _Documents:
        piece = _Documents()
        with in_users_code(lambda: f"while reading document {done + len(piece.texts) + 1:,} of {self.name}"):
            for document in islice(documents, _PIECE_DOCUMENTS):
                piece.add(document, self._column)
                if piece.num_bytes >= PIECE_BYTES:
                    break
        return piece

    def _open(self) -> Iterable[Any]:
        source = self._build()
        if isinstance(source, str | bytes | Mapping) or not isinstance(source, Iterable):
            raise DataError(
                f"{self.name} gives an object of type {type(source).__name__}, not an iterable of documents",
                help='yield texts, or mappings such as {"text": "..."}',
            )
        return source

    def _state(self, source: Any) -> str:
        if not isinstance(source, StatefulStream):
            return ""
        with in_users_code(lambda: f"while asking {self.name} for its state"):
            state = source.state_dict()
        try:
            text = json.dumps(state, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"the state_dict of {self.name} cannot be written as JSON: {error}",
                help="numbers, text, lists and mappings of them can be",
            ) from error
        if not isinstance(state, dict):
            raise DataError(f"the state_dict of {self.name} gives {shown(state)}, but it must be a dict")
        return text


@dataclass
class _Documents:
    """Documents of one piece, as UTF-8."""

    texts: list[bytes | None] = field(default_factory=list)
    rejected: dict[int, str] = field(default_factory=dict)
    found: dict[int, str] = field(default_factory=dict)
    without_column: list[Mapping[str, Any]] = field(default_factory=list)
    num_bytes: int = 0

    def add(self, document: Any, column: str) -> None:
        text, reason, found = _text_of(document, column)
        if reason:
            self.rejected[len(self.texts)], self.found[len(self.texts)] = reason, found
        if reason == "null" and isinstance(document, Mapping) and not has_field(document, column):
            self.without_column.append(document)
        self.texts.append(text)
        self.num_bytes += len(text or b"")

    def rows(self, column: str, name: str, done: int) -> Rows:
        import pyarrow as pa

        if len(self.without_column) == len(self.texts):
            names = {str(key) for document in self.without_column for key in document}
            raise missing_column(column, names, f"{name}:{done + 1}")
        return Rows(pa.array(self.texts, pa.large_binary()), lambda row: done + row + 1, self.rejected, self.found)


def _object(text: str, name: str) -> dict[str, Any]:
    try:
        state = parse_json(text.encode())
    except UnsoundError as error:
        raise DataError(f"the cursor holds no state of {name}: {error}") from error
    if not isinstance(state, dict):
        raise DataError(f"the cursor holds {shown(state)}, which is no state of {name}")
    return state


def _text_of(document: Any, column: str) -> tuple[bytes | None, str, str]:
    """The UTF-8 of a document, or `None` with the reason and what was found."""
    text = field_of(document, column) if isinstance(document, Mapping) else document
    if isinstance(text, bytes):
        return text, "", ""
    if text is None:
        return None, "null", ""
    if not isinstance(text, str):
        return None, "not_text", type(text).__name__
    try:
        return text.encode(), "", ""
    except UnicodeEncodeError:
        return None, "lone_surrogate", ""
