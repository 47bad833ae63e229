"""From shards back to text: decodes a document with the tokenizer that the manifest names."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from automodel_cli.engine.prep.load_tokenizer import load_tokenizer
from automodel_cli.engine.prep.tokenizer import Tokenizer
from automodel_cli.engine.shards.directory import ShardDirectory, SplitDocuments, require_documents
from automodel_cli.errors import DataError, UsageError


@dataclass(frozen=True)
class DecodedDocument:
    """One document as text.

    Attributes:
        number: Its place in the split, from 0.
        shard: File in which it begins.
        offset: Token offset there.
        text: `None` where no tokenizer is known.
    """

    split: str
    number: int
    shard: str
    offset: int
    token_ids: tuple[int, ...]
    text: str | None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def tokenizer_of(directory: ShardDirectory, name: str | None) -> Tokenizer | None:
    """The tokenizer that was named, or the manifest's own; `None` where there is neither.

    Raises:
        DataError: It cannot be loaded, or is no longer the one that made the data.
    """
    manifest = directory.manifest
    if name is None and manifest is None:
        return None
    tokenizer = load_tokenizer(name or manifest.tokenizer.name)  # type: ignore[union-attr]  # one of them is there
    if name is None and manifest is not None and tokenizer.sha256 != manifest.tokenizer.sha256:
        raise DataError(
            f"the tokenizer {tokenizer.name!r} is not the one that made the data: its hash is {tokenizer.sha256}, "
            f"but the manifest says {manifest.tokenizer.sha256}",
            where=str(directory.path),
            help="--tokenizer DIRECTORY decodes with another copy",
        )
    return tokenizer


def read_back(
    directory: ShardDirectory,
    *,
    split: str | None,
    number: int | None = None,
    offset: int | None = None,
    bos_id: int | None = None,
    tokenizer: str | None = None,
) -> DecodedDocument:
    """Decode one document.

    Args:
        directory: The prepared data.
        split: By default the first.
        number: Its place in the split, from 0.
        offset: Or a token of the split that lies in it.
        bos_id: The id that begins a document; by default the manifest's.
        tokenizer: By default the manifest's.

    Raises:
        UsageError: There is no such split or document, or not exactly one of `number` and `offset` is given.
        DataError: A shard or the tokenizer cannot be read, or nothing says where documents begin.
    """
    if (number is None) == (offset is None):
        raise UsageError("give either --doc or --offset", help="--doc 17 is the 18th document of the split")
    name = directory.split(split)
    loaded = tokenizer_of(directory, tokenizer)
    if bos_id is None:
        bos_id = directory.manifest.tokenizer.bos_id if directory.manifest else getattr(loaded, "bos_id", None)
    ends_too = directory.manifest is not None and directory.manifest.tokenizer.bos_is_eos
    documents = SplitDocuments(directory.splits[name], bos_id, ends_too=ends_too)
    require_documents(documents, directory.path)
    found = documents.document(number) if number is not None else documents.document_at(offset or 0)
    ids = tuple(int(token) for token in found.tokens)
    text = None if loaded is None else loaded.decode(ids)
    return DecodedDocument(name, found.number, found.shard.name, found.offset, ids, text)
