"""The text that ships with the package; one scene is one document."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

from automodel_cli.engine.prep.corpus.pieces import Piece, Position, Rows
from automodel_cli.engine.prep.package_data import SHAKESPEARE, read_asset

# A scene begins with the play's title in capitals and the number of the act or scene.
_SCENE = re.compile(r"^(?=[A-Z' ]+\n(?:ACT|SCENE) [IVX]+[.,])", re.MULTILINE)


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
