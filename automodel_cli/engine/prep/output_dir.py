"""The directory that preparation writes into: who owns it and what lies in it.

While preparation runs, a hidden marker with a lock stands in the directory. A marker without a
lock, or a `progress.json`, means that an earlier run was killed: the next one goes on with what it
left. Shards without any of these and without a manifest were not made here and are never touched
unless asked.
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from automodel_cli.engine.config.suggest import command
from automodel_cli.engine.durable import explain_write_errors
from automodel_cli.engine.prep.prep_options import MAX_DOCUMENT_BYTES
from automodel_cli.engine.prep.progress import PROGRESS_NAME, Unfinished, load_progress
from automodel_cli.engine.shards.manifest import MANIFEST_NAME, DataManifest
from automodel_cli.engine.shards.verify import verify_directory
from automodel_cli.errors import DataError

MARKER_NAME = ".amcli-prep"

_OUR_FILES = re.compile(r"\.?(train|val)_\d{6}\.(bin|bos\.idx|idx)(\.tmp)?")
_REMAKE = "--overwrite makes the data again, another --output-dir keeps both"
# What a setting was before there was an option for it.
_BEFORE = {
    "shuffle_buffer": 0,
    "seed": None,
    "max_length": None,
    "over_length": None,
    "max_document_bytes": MAX_DOCUMENT_BYTES,
    "bos": True,
    "bos_token": None,
    "eos": False,
    "partition": None,
    "format": "bin",
}


@contextmanager
def claimed(directory: Path, *, overwrite: bool) -> Iterator[Unfinished | None]:
    """Own a directory for the duration of the body; gives what an earlier run left unfinished.

    When the body returns, marker and progress are removed; when it raises, they stay.

    Args:
        directory: Made if it is missing.
        overwrite: Begin anew, whatever lies there.

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
            unfinished = None if overwrite else load_progress(directory)
            if unfinished is None:
                clear(directory, allowed=overwrite or was_interrupted)
        except DataError:
            if not was_interrupted:
                marker.unlink()
            raise
        yield unfinished
        with explain_write_errors(directory / PROGRESS_NAME):
            (directory / PROGRESS_NAME).unlink(missing_ok=True)
        marker.unlink()


def clear(directory: Path, *, allowed: bool, keep: frozenset[str] = frozenset()) -> None:
    """Remove what an earlier run left.

    Args:
        directory: Where it lies.
        allowed: Whether the shards there are known to be ours.
        keep: Names of shards that stay, with what belongs to them.

    Raises:
        DataError: There are shards of unknown origin.
    """
    leftovers = [
        path
        for path in directory.iterdir()
        if _OUR_FILES.fullmatch(path.name) and path.name.removeprefix(".").split(".")[0] not in keep
    ]
    if leftovers and not allowed:
        raise DataError(
            f"the directory holds {len(leftovers)} shard files without a manifest, such as {min(leftovers).name}, "
            "so nothing says how they were made",
            where=str(directory),
            help=_REMAKE,
        )
    # The manifest is deleted first: after an interruption no manifest may name missing shards.
    for name in (MANIFEST_NAME, PROGRESS_NAME) if not keep else ():
        with explain_write_errors(directory / name):
            (directory / name).unlink(missing_ok=True)
    for path in leftovers:
        with explain_write_errors(path):
            path.unlink()


def check_same(directory: Path, existing: Mapping[str, Any], wanted: Mapping[str, Any], state: str) -> None:
    """Refuse a directory whose data are made with other settings.

    Args:
        directory: Where they lie.
        existing: Its settings.
        wanted: The settings asked for, as `identity` gives them.
        state: What lies there, in words.

    Raises:
        DataError: A setting differs; each is named.
    """
    before = {**_BEFORE, **existing}
    differing = [name for name, value in wanted.items() if before.get(name) != value]
    # "source sha256" adds nothing where "source" differs already.
    telling = [name for name in differing if name.split()[0] == name or name.split()[0] not in differing]
    if telling:
        raise DataError(
            f"the directory holds {state} made with other settings: "
            + "; ".join(f"{name} is {before.get(name)!r} there and {wanted[name]!r} here" for name in telling),
            where=str(directory),
            help=_REMAKE,
        )


def check_complete(directory: Path, found: DataManifest) -> None:
    """Refuse finished data of which a shard is missing or has another size.

    Raises:
        DataError: Names the first such shard.
    """
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
        "source revision": manifest.source.revision,
        "source sha256": manifest.source.sha256,
        "tokenizer": manifest.tokenizer.name,
        "tokenizer sha256": manifest.tokenizer.sha256,
        **manifest.settings,
    }


def check_every_byte(directory: Path) -> None:
    """Compare every byte of a directory with its manifest.

    Raises:
        DataError: Something differs; the first problem is named.
    """
    problems = verify_directory(directory).problems
    if problems:
        raise DataError(
            f"{problems[0].where}: {problems[0].message}",
            where=str(directory),
            help=f"`{command('data', 'verify', directory)}` lists all {len(problems)}; "
            "--overwrite makes the data again",
        )
