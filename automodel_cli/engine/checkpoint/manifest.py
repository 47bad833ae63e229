"""`manifest.json`: what a checkpoint consists of, byte for byte.

It is written last, so a directory without one is not a checkpoint. It holds the size and the
SHA-256 of every other file and a SHA-256 of its own text, so that no flipped bit anywhere in a
checkpoint goes unnoticed. Reading one executes nothing, follows no link and stays inside the
directory, whatever the file says.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from automodel_cli.engine.bounded import MAX_NAME_BYTES, UnsoundError, finite, parse_json, read_bytes, shown, typed
from automodel_cli.engine.checkpoint.snapshot import TokenizerName
from automodel_cli.engine.config.suggest import on_run
from automodel_cli.engine.durable import BLANK_DIGEST, is_sealed, sealed, write_bytes
from automodel_cli.errors import CheckpointError

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 16 * 2**20
_MAX_FILES = 50_000
_MAX_DEPTH = 8  # of a file's path; ours have two parts


class NewerFormatError(CheckpointError):
    """A newer amcli wrote the checkpoint: nothing is wrong with it, and nothing can be said about it."""


@dataclass(frozen=True)
class FileRecord:
    """Size and SHA-256 (lower-case hexadecimal) of one file."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The contents of `manifest.json`.

    Args:
        amcli_version: Version that wrote the checkpoint.
        step: Optimisation steps done.
        saved_at: UTC time of the save, ISO 8601.
        files: Every other file, by its path relative to the checkpoint, with `/`.
        facts: What the writer wants to be shown without opening other files; numbers that are not
            finite are written as null, since other readers of JSON refuse them.
    """

    amcli_version: str
    step: int
    saved_at: str
    files: dict[str, FileRecord]
    facts: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Findings:
    """How a directory differs from its manifest; each entry is one readable line.

    Args:
        missing: Files that the manifest lists and the directory lacks.
        damaged: Files that are there with another size, other bytes or as a link.
        extra: Files that the manifest does not list. Nothing reads them, so they break nothing.
    """

    missing: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    @property
    def broken(self) -> tuple[str, ...]:
        """What makes the checkpoint unusable."""
        return self.missing + self.damaged


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes and synchronises `manifest.json`; every file that it lists must be on disk already."""
    fields = {
        "format_version": manifest.format_version,
        "amcli_version": manifest.amcli_version,
        "step": manifest.step,
        "saved_at": manifest.saved_at,
        "facts": finite(manifest.facts),
        "files": {
            name: {"bytes": record.num_bytes, "sha256": record.sha256}
            for name, record in sorted(manifest.files.items())
        },
        "manifest_sha256": BLANK_DIGEST,
    }
    write_bytes(directory / MANIFEST_NAME, sealed(json.dumps(fields, indent=2, allow_nan=False) + "\n"))


def read_manifest(directory: Path) -> Manifest:
    """Reads and checks `manifest.json`.

    Raises:
        NewerFormatError: A newer amcli wrote it.
        CheckpointError: There is none, or it is damaged.
        OSError: The file is there and cannot be read.
    """
    path = directory / MANIFEST_NAME
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"there is no {MANIFEST_NAME}, which a save writes last, so this is not a complete checkpoint",
            where=str(directory),
            help=use_earlier(directory),
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise _damaged(path, "it is not a regular file")
    try:
        return _parsed(path, read_bytes(path, MAX_MANIFEST_BYTES))
    except UnsoundError as error:
        raise _damaged(path, str(error)) from None


def use_earlier(directory: Path) -> str:
    """What to do about a checkpoint that cannot be used."""
    return f"use an earlier checkpoint; `{on_run('inspect-ckpt', directory.parent)}` lists them"


@dataclass(frozen=True)
class _File:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Facts:
    """Those facts that more is done with than showing them."""

    tokenizer: TokenizerName | None = None
    versions: dict[str, Any] | None = None
    ranks: int | None = None


@dataclass(frozen=True)
class _Fields:
    format_version: int
    amcli_version: str
    step: int
    saved_at: str
    facts: dict[str, Any]
    files: dict[str, _File]


def _parsed(path: Path, content: bytes) -> Manifest:
    raw = parse_json(content)
    # Before the version is believed: one flipped bit makes another number of it.
    if not isinstance(raw, dict) or not is_sealed(content, raw.get("manifest_sha256")):
        raise UnsoundError("its text does not match its own SHA-256")
    version = raw.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        raise NewerFormatError(
            f"the checkpoint has format version {version}, and this amcli reads up to {FORMAT_VERSION}",
            where=str(path),
            help="use the amcli that wrote it, or a newer one",
        )
    fields = typed(_Fields, raw, ignore_unknown=True)
    typed(_Facts, fields.facts, "facts", ignore_unknown=True)
    if len(fields.files) > _MAX_FILES:
        raise UnsoundError(f"it lists {len(fields.files):,} files, and at most {_MAX_FILES:,} are read")
    return Manifest(
        format_version=fields.format_version,
        amcli_version=fields.amcli_version,
        step=fields.step,
        saved_at=fields.saved_at,
        files={_contained(path, name): FileRecord(file.bytes, file.sha256) for name, file in fields.files.items()},
        facts=fields.facts,
    )


def _contained(path: Path, name: str) -> str:
    """`name`, if it can only mean a file inside the checkpoint."""
    parts = name.split("/")
    is_plain = not set("\\\0") & set(name) and len(parts) <= _MAX_DEPTH
    is_plain = is_plain and all(len(part.encode()) <= MAX_NAME_BYTES for part in parts)
    if not is_plain or any(part in ("", ".", "..", MANIFEST_NAME) for part in parts):
        raise _damaged(path, f"it lists {shown(name)}, which is not a plain path inside the checkpoint")
    return name


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"the manifest is damaged: {reason}", where=str(path), help="use another checkpoint")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in constant memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def compare(directory: Path, manifest: Manifest, hashes: bool = True) -> Findings:
    """Compares a directory with its manifest.

    Args:
        directory: The checkpoint.
        manifest: What it should be.
        hashes: Also read every byte; without it only names and sizes are compared.

    Raises:
        OSError: A file cannot be read (permissions, a failing disk): nothing is known about it.
    """
    missing, damaged = [], []
    for name, record in manifest.files.items():
        path = directory / name
        link = _link_on_the_way(directory, name)
        if link is not None:
            damaged.append(f"{name}: {link} is a link, and links are not followed")
        elif not os.path.lexists(path):
            missing.append(f"{name}: missing")
        elif not stat.S_ISREG(path.lstat().st_mode):
            damaged.append(f"{name}: not a regular file")
        elif path.stat().st_size != record.num_bytes:
            damaged.append(f"{name}: {path.stat().st_size:,} bytes, but the manifest says {record.num_bytes:,}")
        elif hashes and (found := sha256_of(path)) != record.sha256:
            damaged.append(f"{name}: SHA-256 is {found[:12]}..., but the manifest says {record.sha256[:12]}...")
    listed = {*manifest.files, MANIFEST_NAME}
    extra = sorted(f"{name}: not in the manifest" for name, _ in _files_below(directory) if name not in listed)
    return Findings(tuple(missing), tuple(damaged), tuple(extra))


def examine(directory: Path, hashes: bool = True) -> Findings:
    """`compare` with the directory's own manifest, whose absence or damage is a finding as well.

    Raises:
        NewerFormatError: A newer amcli wrote it.
        OSError: A file cannot be read.
    """
    try:
        return compare(directory, read_manifest(directory), hashes)
    except NewerFormatError:
        raise
    except CheckpointError as error:
        return Findings(damaged=(error.message,))


def verify(directory: Path, hashes: bool = True) -> list[str]:
    """Everything that differs from what was saved, one line each; extra files too, which break nothing.

    Raises:
        NewerFormatError: A newer amcli wrote it.
        OSError: A file cannot be read.
    """
    findings = examine(directory, hashes)
    return [*findings.broken, *findings.extra]


def _files_below(directory: Path) -> Iterator[tuple[str, Path]]:
    """Everything below `directory` that is not a plain directory: (relative path with `/`, path)."""
    for parent, directories, files in os.walk(directory, followlinks=False):
        links = [name for name in directories if (Path(parent) / name).is_symlink()]
        for name in (*files, *links):
            path = Path(parent) / name
            yield path.relative_to(directory).as_posix(), path


def _link_on_the_way(directory: Path, name: str) -> str | None:
    """The first component of `name` that is a symbolic link."""
    relative = PurePosixPath(name)
    for part in (*reversed(relative.parents[:-1]), relative):
        if (directory / part).is_symlink():
            return str(part)
    return None
