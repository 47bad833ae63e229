"""The directory that preparation writes into: who owns it and what lies in it.

While preparation runs, a hidden marker with a lock stands in the directory. A marker without
a lock means that an earlier run was killed: what it left is cleared and made again. Shards
without marker and manifest were not made here and are never touched unless asked.
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from automodel_cli.engine.shards.durable import explain_write_errors
from automodel_cli.engine.shards.manifest import MANIFEST_NAME, DataManifest
from automodel_cli.errors import DataError

MARKER_NAME = ".amcli-prep"

_OUR_FILES = re.compile(r"\.?(train|val)_\d{6}\.(bin|bos\.idx)(\.tmp)?")
_REMAKE = "--overwrite makes the data again, another --output-dir keeps both"


@contextmanager
def claimed(directory: Path, *, overwrite: bool) -> Iterator[None]:
    """Own an emptied directory for the duration of the body.

    The marker is removed when the body returns, and stays when it raises.

    Raises:
        DataError: Another run is writing there, or there are shards of unknown origin.
    """
    marker = directory / MARKER_NAME
    with explain_write_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        was_interrupted = marker.exists()
        file = marker.open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(
                "another `amcli prep` is writing into this directory", where=str(directory), help="wait for it to end"
            ) from error
        try:
            _clear(directory, allowed=overwrite or was_interrupted)
        except DataError:
            marker.unlink()
            raise
        yield
        marker.unlink()


def _clear(directory: Path, *, allowed: bool) -> None:
    leftovers = [path for path in directory.iterdir() if _OUR_FILES.fullmatch(path.name)]
    if leftovers and not allowed:
        raise DataError(
            f"the directory holds {len(leftovers)} shard files without a manifest, such as {min(leftovers).name}, "
            "so nothing says how they were made",
            where=str(directory),
            help=_REMAKE,
        )
    # The manifest goes first: if this is interrupted, no manifest may speak of missing shards.
    (directory / MANIFEST_NAME).unlink(missing_ok=True)
    for path in leftovers:
        path.unlink()


def check_reusable(directory: Path, found: DataManifest, wanted: dict[str, Any]) -> None:
    """Refuse prepared data that were made with other settings, or are no longer complete.

    Args:
        directory: Where the data lie.
        found: Their manifest.
        wanted: The settings, as `identity` gives them.

    Raises:
        DataError: A setting differs, or a shard is missing or has another size.
    """
    existing = identity(found)
    differing = [name for name, value in wanted.items() if existing.get(name) != value]
    # "source sha256" says nothing new where "source" differs already.
    telling = [name for name in differing if name.split()[0] == name or name.split()[0] not in differing]
    if telling:
        raise DataError(
            "the directory holds data made with other settings: "
            + "; ".join(f"{name} is {existing.get(name)!r} there and {wanted[name]!r} here" for name in telling),
            where=str(directory),
            help=_REMAKE,
        )
    for shard in (shard for split in found.splits.values() for shard in split.shards):
        path = directory / shard.name
        found_bytes = path.stat().st_size if path.is_file() else None
        if found_bytes != shard.num_bytes:
            state = "is missing" if found_bytes is None else f"has {found_bytes:,} bytes"
            raise DataError(
                f"{shard.name} {state}, but the manifest says {shard.num_bytes:,} bytes",
                where=str(directory),
                help=_REMAKE,
            )


def identity(manifest: DataManifest) -> dict[str, Any]:
    """Everything that decides what the data are, by name of the setting."""
    return {
        "source": manifest.source.name,
        "source sha256": manifest.source.sha256,
        "tokenizer": manifest.tokenizer.name,
        "tokenizer sha256": manifest.tokenizer.sha256,
        **manifest.settings,
    }
