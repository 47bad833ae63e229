"""`manifest.json`: what a directory of shards holds, and how it was made.

It is written last, so its presence means that preparation finished. It names no time and no
path of the machine that wrote it: the same source and settings give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from automodel_cli.engine.bounded import MAX_NAME_BYTES, UnsoundError, parse_json, read_bytes, shown, typed
from automodel_cli.engine.durable import BLANK_DIGEST, is_sealed, sealed, write_durably
from automodel_cli.engine.shards.tokens import ShardInfo
from automodel_cli.errors import DataError

MANIFEST_NAME = "manifest.json"
FORMAT = "amcli-token-shards"
FORMAT_VERSION = 3
# Version 1 lacks `reading` and `versions`, and the fields that have a default here; versions 1 and 2 lack a hash.
READABLE_VERSIONS = (1, 2, 3)
MAX_MANIFEST_BYTES = 16 * 2**20

_SEALED_SINCE = 3
_UNSEALED = f"{MANIFEST_NAME} is of an earlier version of amcli and has no hash of itself"
_AGAIN = "prepare the data again, with --overwrite"


@dataclass(frozen=True)
class SourceRecord:
    """Where the text came from.

    Attributes:
        name: Preset or pattern of files.
        revision: Version of a source that changes under one name, when it has one.
        sha256: Hash of the text, when the source is at hand as a whole.
    """

    name: str
    revision: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class TokenizerRecord:
    """What made the tokens; equal hashes mean equal token ids for any text.

    Attributes:
        name: As the user gave it.
        vocab_size: Every id is below it.
        bos_id: Begins each document; `None` if nothing does.
        sha256: Hash of the files that decide the ids.
        eos_id: Ends each document; `None` if nothing does.
    """

    name: str
    vocab_size: int
    bos_id: int | None
    sha256: str
    eos_id: int | None = None

    @property
    def bos_is_eos(self) -> bool:
        """Whether one token both begins and ends each document."""
        return self.bos_id is not None and self.bos_id == self.eos_id


@dataclass(frozen=True)
class ShardRecord:
    """One shard.

    Attributes:
        name: File name.
        num_tokens: Its length.
        num_bytes: Size of the file.
        sha256: Hash of the whole file.
        max_token_id: The largest id that occurs.
        source_cursor: Place in the source shortly before the end of the shard; `None` is its beginning.
    """

    name: str
    num_tokens: int
    num_bytes: int
    sha256: str
    max_token_id: int
    source_cursor: str | None = None


@dataclass(frozen=True)
class SplitRecord:
    """One split (`train` or `val`).

    Attributes:
        num_documents: Documents, the last of which may be cut.
        num_tokens: Tokens in all shards, BOS included.
        text_bytes: UTF-8 bytes of the documents before tokenization.
        max_token_id: The largest id that occurs.
        longest_document_tokens: Length of the longest document, BOS included.
        unigram_entropy_nats: Cross-entropy, in nats per token, of the best model that ignores
            all context; a trained model must fall well below it.
        shards: In reading order.
        over_length_documents: Documents that were longer than the limit, and were cut or split.
        unknown_tokens: Tokens of what the tokenizer has no entry for, such as `<unk>`.
    """

    num_documents: int
    num_tokens: int
    text_bytes: int
    max_token_id: int
    longest_document_tokens: int
    unigram_entropy_nats: float
    shards: tuple[ShardRecord, ...]
    over_length_documents: int = 0
    unknown_tokens: int = 0


@dataclass(frozen=True)
class ReadingRecord:
    """What was read from the source.

    Attributes:
        num_documents: Texts that went into a split.
        source_bytes: Bytes of the source that they took, as far as the source knows.
        skipped: Texts left out, by reason.
        first_skipped: The first of each reason: `where` it is (`a.jsonl:17`), and what was `found`.
    """

    num_documents: int
    source_bytes: int
    skipped: dict[str, int]
    first_skipped: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class DataManifest:
    """All of `manifest.json`.

    Attributes:
        source: What was read.
        tokenizer: What made the tokens.
        settings: Everything that decides about the bytes of the shards; how many threads worked does not.
        splits: What was written.
        amcli_version: Version that wrote it.
        reading: What was read; `None` before format version 2.
        versions: Programs that had a part in it, such as `tokenizer_engine` and `python`.
        format: Says that this is a manifest of token shards.
        format_version: Grows when readers must change.
        manifest_sha256: Hash of the text of the file, with zeros in this place; `None` before format version 3.
    """

    source: SourceRecord
    tokenizer: TokenizerRecord
    settings: dict[str, Any]
    splits: dict[str, SplitRecord]
    amcli_version: str
    reading: ReadingRecord | None = None
    versions: dict[str, str] = field(default_factory=dict)
    format: str = field(default=FORMAT)
    format_version: int = field(default=FORMAT_VERSION)
    manifest_sha256: str | None = field(default=None, compare=False)

    @property
    def num_tokens(self) -> int:
        """Tokens in all splits."""
        return sum(split.num_tokens for split in self.splits.values())

    @property
    def num_documents(self) -> int:
        """Documents in all splits."""
        return sum(split.num_documents for split in self.splits.values())

    @property
    def max_token_id(self) -> int:
        """The largest id in any split."""
        return max(split.max_token_id for split in self.splits.values())

    @property
    def unigram_entropy_nats(self) -> dict[str, float]:
        """The unigram entropy of each split, in nats per token."""
        return {name: split.unigram_entropy_nats for name, split in self.splits.items()}

    @property
    def note(self) -> str | None:
        """What a user should know of the file itself."""
        return _UNSEALED if self.manifest_sha256 is None else None

    def shard(self, name: str) -> ShardRecord | None:
        """The record of the shard with this file name, in whichever split it is."""
        return next((shard for split in self.splits.values() for shard in split.shards if shard.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """What it says as plain JSON values, without the hash of the file."""
        return {key: value for key, value in asdict(self).items() if key != "manifest_sha256"}


def write_manifest(directory: Path, manifest: DataManifest) -> None:
    """Write `manifest.json` durably; call it after every shard is in place."""
    fields = {**manifest.to_dict(), "format_version": FORMAT_VERSION, "manifest_sha256": BLANK_DIGEST}
    text = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
    # What is no Unicode, as in the name of a file that is not UTF-8, is escaped as JSON does.
    text = text.encode("utf-8", "backslashreplace").decode()
    write_durably(directory / MANIFEST_NAME, sealed(text))


def load_manifest(directory: Path) -> DataManifest | None:
    """Read the manifest of a directory; `None` when there is none.

    Raises:
        DataError: There is a `manifest.json` that is broken, of another format or of another version.
    """
    path = directory / MANIFEST_NAME
    try:
        return _parsed(path, read_bytes(path, MAX_MANIFEST_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"the manifest cannot be read: {error.strerror}", where=str(path)) from error
    except UnsoundError as error:
        raise DataError(f"the manifest is damaged: {error}", where=str(path), help=_AGAIN) from error


def _parsed(path: Path, content: bytes) -> DataManifest:
    raw = parse_json(content, allow_surrogates=True)
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise DataError(f"this is no manifest of token shards (its `format` is not {FORMAT!r})", where=str(path))
    version = raw.get("format_version")
    # Before the version is believed: one flipped bit makes another number of it.
    if "manifest_sha256" in raw and not is_sealed(content, raw["manifest_sha256"]):
        raise UnsoundError("its text does not match its own SHA-256")
    if type(version) is not int or version not in READABLE_VERSIONS:
        raise DataError(
            f"the manifest has format version {shown(version)}, but this amcli reads "
            f"{' and '.join(map(str, READABLE_VERSIONS))}",
            where=str(path),
            help=_AGAIN,
        )
    if version >= _SEALED_SINCE and "manifest_sha256" not in raw:
        raise UnsoundError("manifest_sha256 is missing")
    manifest = typed(DataManifest, raw)
    names = [shard.name for split in manifest.splits.values() for shard in split.shards]
    if not manifest.splits or len(set(names)) < len(names):
        raise UnsoundError("it lists no split, or a shard twice")
    for name in names:
        is_plain = name.isprintable() and not set("/\\") & set(name) and len(name.encode()) <= MAX_NAME_BYTES
        if name in ("", ".", "..") or not is_plain:
            raise UnsoundError(f"it lists {shown(name)}, which is not the name of a file beside it")
    return manifest


def manifest_for(shards: Sequence[ShardInfo]) -> DataManifest | None:
    """The manifest that describes all of `shards`, or `None` when none does.

    It must lie in the one directory that holds them all and name each with the number of
    tokens that its header has; a manifest that fits only some shards describes other data.
    """
    directories = {info.path.parent for info in shards}
    if len(directories) != 1:
        return None
    manifest = load_manifest(directories.pop())
    if manifest is None:
        return None
    for info in shards:
        record = manifest.shard(info.path.name)
        if record is None or record.num_tokens != info.num_tokens:
            return None
    return manifest
