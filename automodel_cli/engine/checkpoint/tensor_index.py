"""The JSON files beside weights: `config.json`, and the index of weights that are cut into files. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from automodel_cli.engine.bounded import read_object
from automodel_cli.errors import CheckpointError

_MAX_JSON_BYTES = 32 * 2**20


def indexed_files(index: Path) -> list[Path]:
    """The files that an index names, each once, sorted.

    Raises:
        CheckpointError: It names none, or one that does not lie beside it.
    """
    names = json_object(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError("`weight_map` must map each tensor to its file", where=str(index))
    files = sorted(set(names.values()))
    for name in files:
        if Path(name).name != name:
            raise CheckpointError(f"it names {name!r}, but only files beside it are read", where=str(index))
    missing = [name for name in files if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(f"it names files that are not here: {', '.join(missing)}", where=str(index))
    return [index.parent / name for name in files]


def json_object(path: Path) -> dict[str, Any]:
    """The contents of a JSON file of bounded size.

    Raises:
        CheckpointError: It cannot be read, or is no JSON object.
    """
    return read_object(path, CheckpointError, max_bytes=_MAX_JSON_BYTES, allow_nan=True)
