"""The one place where what a user names becomes a source."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

from automodel_cli.engine.prep.corpus.corpus import Corpus
from automodel_cli.engine.prep.corpus.files import STDIN, open_files, open_stdin
from automodel_cli.engine.prep.corpus.own_source import names_code, open_own
from automodel_cli.engine.prep.corpus.pieces import Piece, Position, Rows
from automodel_cli.engine.prep.package_data import SHA256, SHAKESPEARE, read_asset
from automodel_cli.engine.prep.prep_options import SourceOptions
from automodel_cli.engine.prep.presets import PRESETS, HubLocation
from automodel_cli.engine.prep.source import SourceDescription
from automodel_cli.engine.shards.manifest import SourceRecord
from automodel_cli.errors import UsageError

_DEFAULT_COLUMN = "text"
_HUB_ONLY = ("set_name", "split", "revision")
# A scene begins with the play's title in capitals and the number of the act or scene.
_SCENE = re.compile(r"^(?=[A-Z' ]+\n(?:ACT|SCENE) [IVX]+[.,])", re.MULTILINE)


def open_source(options: SourceOptions) -> Corpus:
    """The source that a user names: a preset, a data set on the hub, own code, files, or standard input.

    Reads no document, but asks the hub for what lies there.

    Raises:
        UsageError: The names do not fit together, or stand for nothing.
        DataError: The hub has no such data set, configuration, split or column, or cannot be reached.
    """
    _check(options)
    name = options.sources[0] if options.sources else ""
    column = options.text_column or _DEFAULT_COLUMN
    preset = PRESETS.get(name)
    if options.dataset is not None or (preset is not None and preset.hub is not None):
        # Imported here only: other sources do not need the package.
        from automodel_cli.engine.prep.corpus.hub import open_hub

        location = HubLocation(options.dataset or "") if preset is None or preset.hub is None else preset.hub
        return open_hub(location, options)
    if preset is not None:
        return _embedded(options)
    if names_code(name):
        return open_own(options, column)
    return open_stdin(options, column) if name == STDIN else open_files(options, column)


def _check(options: SourceOptions) -> None:
    if options.dataset is not None and options.sources:
        raise UsageError(
            f"there are two sources: --dataset {options.dataset} and {options.sources[0]}", help="name one of them"
        )
    if options.dataset is None and not options.sources:
        raise UsageError("there is no source", help="try `amcli prep shakespeare`, or `amcli prep --list`")
    alone = [name for name in options.sources if name in PRESETS or name == STDIN or names_code(name)]
    if alone and len(options.sources) > 1:
        raise UsageError(f"{alone[0]!r} is a source of its own and cannot be read together with others")
    if options.source_args is not None and not (options.sources and names_code(options.sources[0])):
        named = options.dataset or options.sources[0]
        raise UsageError(f"--source-args is for a source of your own code, FILE.py:NAME, and {named} is none")
    preset = PRESETS.get(options.sources[0]) if options.sources else None
    is_hub = options.dataset is not None or (preset is not None and preset.hub is not None)
    given = [field for field in _HUB_ONLY if getattr(options, field) is not None]
    if given and not is_hub:
        option = "--" + given[0].replace("_", "-")
        raise UsageError(f"{option} is for data sets on the hub, and {options.sources[0]} is none")


def _embedded(options: SourceOptions) -> Corpus:
    return Corpus(
        [EmbeddedReader()],
        SourceDescription("embedded", ("shakespeare",), None, resumable=True),
        SourceRecord("shakespeare", sha256=SHA256[SHAKESPEARE]),
        options.max_document_bytes,
        options.on_bad_document,
    )


class EmbeddedReader:
    """The scenes, play by play; a piece is a scene."""

    name = "shakespeare"

    def __init__(self) -> None:
        self._scenes = [scene.encode() for scene in _SCENE.split(read_asset(SHAKESPEARE)) if scene]
        self.num_bytes: int | None = sum(len(scene) for scene in self._scenes)

    def pieces(self, start: Position | None) -> Iterator[Piece]:
        """The scenes from a position on."""
        for number in range(start[0] if start else 0, len(self._scenes)):
            scene = self._scenes[number]
            yield Piece(number, (number + 1,), len(scene), partial(_rows, scene, number))


def _rows(scene: bytes, number: int) -> Rows:
    import pyarrow as pa

    return Rows(pa.array([scene], pa.large_binary()), lambda row: number + row + 1)
