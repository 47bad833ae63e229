"""From text to token shards: read, tokenize, split, write, and the manifest last.

Guarantees: the training split has exactly the number of tokens that was asked for (or the
whole text, if that is less); validation is made of whole documents that are in no training
shard; the same source and settings give the same bytes; a killed run leaves nothing that
looks finished, and the next one starts again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from automodel_cli import __version__
from automodel_cli.engine.prep.hold_out import HoldOut
from automodel_cli.engine.prep.options import PrepOptions
from automodel_cli.engine.prep.output_dir import check_reusable, claimed, identity
from automodel_cli.engine.prep.presets import LOCAL_FILES, PRESETS
from automodel_cli.engine.prep.sources import Document, Source, open_source
from automodel_cli.engine.prep.split_writer import SplitWriter
from automodel_cli.engine.prep.tokenizer import TokenIds, Tokenizer, load_tokenizer
from automodel_cli.engine.shards.format import MAX_SHARD_TOKENS
from automodel_cli.engine.shards.manifest import (
    DataManifest,
    SplitRecord,
    TokenizerRecord,
    load_manifest,
    write_manifest,
)
from automodel_cli.errors import DataError, UsageError

# The options stand in a file without numpy, which the command line reads; callers find all here.
__all__ = ["PrepOptions", "PrepProgress", "PrepResult", "default_output_dir", "ignore_progress", "prepare"]

# Documents are tokenized in batches: large enough to keep the tokenizer's threads busy,
# small enough that a batch of them is nothing beside the memory of the process.
_BATCH_CHARS = 1 << 22
_BATCH_DOCUMENTS = 1024


@dataclass(frozen=True)
class PrepProgress:
    """How far preparation is.

    Attributes:
        num_documents: Documents read.
        train_tokens: Tokens in the training split.
        val_tokens: Tokens in the validation split.
        fraction: 0 to 1, or `None` when the end is not known.
    """

    num_documents: int
    train_tokens: int
    val_tokens: int
    fraction: float | None


@dataclass(frozen=True)
class PrepResult:
    """What lies in the directory now.

    Attributes:
        directory: Where the shards are.
        manifest: What they are.
        reused: They were there already, made with the same settings, and were left alone.
        notes: What the user should know, such as a text smaller than the budget.
    """

    directory: Path
    manifest: DataManifest
    reused: bool
    notes: tuple[str, ...]


OnProgress = Callable[[PrepProgress], None]


def ignore_progress(_: PrepProgress) -> None:
    """Report to nobody."""


def prepare(options: PrepOptions, on_progress: OnProgress = ignore_progress) -> PrepResult:
    """Turn text into token shards, or leave finished ones alone.

    Args:
        options: What to make.
        on_progress: Called after every batch of documents.

    Raises:
        UsageError: The source is not known, or a number is out of range.
        DataError: The text, the tokenizer or the directory cannot be used.
    """
    _check_numbers(options)
    preset = PRESETS.get(options.source, LOCAL_FILES)
    source = open_source(options.source, options.text_column)
    tokenizer = load_tokenizer(options.tokenizer or preset.tokenizer)
    directory = options.output_dir or default_output_dir(options.source)
    max_tokens = preset.max_tokens if options.max_tokens is None else options.max_tokens
    hold_out = HoldOut(preset.val_share, options.val_tokens, max_tokens)
    planned = DataManifest(
        source=source.record(),
        tokenizer=TokenizerRecord(tokenizer.name, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.sha256),
        settings=_settings(options, hold_out),
        splits={},
        amcli_version=__version__,
    )
    existing = None if options.overwrite else load_manifest(directory)
    if existing is not None:
        check_reusable(directory, existing, identity(planned))
        return PrepResult(directory, existing, True, _notes(existing, hold_out))
    with claimed(directory, overwrite=options.overwrite):
        splits = _write_splits(directory, source, tokenizer, hold_out, options.shard_tokens, on_progress)
        manifest = DataManifest(**{**vars(planned), "splits": splits})
        write_manifest(directory, manifest)
    return PrepResult(directory, manifest, False, _notes(manifest, hold_out))


def default_output_dir(source: str) -> Path:
    """Where a source goes when the user names no directory.

    >>> default_output_dir("shakespeare").as_posix(), default_output_dir("my/notes.txt").as_posix()
    ('data/shakespeare', 'data/notes')
    """
    name = source if source in PRESETS else Path(source).stem.strip("*?[]._") or "text"
    return Path("data") / name


def _check_numbers(options: PrepOptions) -> None:
    if options.max_tokens is not None and options.max_tokens < 1:
        raise UsageError(f"--max-tokens is {options.max_tokens}, but must be at least 1")
    if options.val_tokens is not None and options.val_tokens < 0:
        raise UsageError(f"--val-tokens is {options.val_tokens}, but must be at least 0")
    if not 1 <= options.shard_tokens <= MAX_SHARD_TOKENS:
        raise UsageError(f"--shard-tokens is {options.shard_tokens:,}, but must be in 1 to {MAX_SHARD_TOKENS:,}")


def _settings(options: PrepOptions, hold_out: HoldOut) -> dict[str, Any]:
    return {
        "max_tokens": hold_out.max_tokens,
        "val_tokens": hold_out.val_tokens,
        "val_share": hold_out.share,
        "shard_tokens": options.shard_tokens,
        "text_column": options.text_column,
    }


def _write_splits(
    directory: Path,
    source: Source,
    tokenizer: Tokenizer,
    hold_out: HoldOut,
    shard_tokens: int,
    on_progress: OnProgress,
) -> dict[str, SplitRecord]:
    vocab_size, bos_id = tokenizer.vocab_size, tokenizer.bos_id
    train = SplitWriter(directory, "train", vocab_size, bos_id, shard_tokens)
    val = SplitWriter(directory, "val", vocab_size, bos_id, shard_tokens)
    try:
        _fill(train, val, source, tokenizer, hold_out, on_progress)
        _check_not_empty(train, val, hold_out)
        writers = {"train": train, "val": val} if val.num_tokens else {"train": train}
        return {split: writer.close() for split, writer in writers.items()}
    finally:
        train.discard()
        val.discard()


def _fill(
    train: SplitWriter,
    val: SplitWriter,
    source: Source,
    tokenizer: Tokenizer,
    hold_out: HoldOut,
    on_progress: OnProgress,
) -> None:
    """Send every document to its split until both are full or the source ends."""
    num_documents = read_tokens = read_bytes = 0
    with closing(_batches(source.documents())) as batches:
        for batch in batches:
            encoded = tokenizer.encode_batch([document.text for document in batch])
            for document, ids in zip(batch, encoded, strict=True):
                tokens = _with_bos(ids, tokenizer.bos_id)
                corpus_tokens = _estimate(read_tokens, read_bytes, source.total_bytes)
                is_held_out = hold_out.takes(num_documents, val.num_tokens, train.num_tokens, corpus_tokens)
                num_documents += 1
                read_tokens += len(tokens)
                read_bytes += document.source_bytes
                text_bytes = len(document.text.encode("utf-8", "replace"))
                if is_held_out:
                    val.add(tokens, text_bytes)
                else:
                    _add_within_budget(train, tokens, text_bytes, hold_out.max_tokens)
                if hold_out.is_satisfied(val.num_tokens, train.num_tokens):
                    break
            train.flush()
            val.flush()
            fraction = _fraction(train.num_tokens, hold_out.max_tokens, read_bytes, source.total_bytes)
            on_progress(PrepProgress(num_documents, train.num_tokens, val.num_tokens, fraction))
            if hold_out.is_satisfied(val.num_tokens, train.num_tokens):
                return


def _add_within_budget(train: SplitWriter, tokens: TokenIds, text_bytes: int, max_tokens: int | None) -> None:
    room = len(tokens) if max_tokens is None else max_tokens - train.num_tokens
    if room > 0:
        train.add(tokens[:room], text_bytes)


def _batches(documents: Iterable[Document]) -> Generator[list[Document], None, None]:
    batch: list[Document] = []
    num_chars = 0
    for document in documents:
        # An empty document would be a lone BOS, which teaches a model to end at once.
        if not document.text.strip():
            continue
        batch.append(document)
        num_chars += len(document.text)
        if num_chars >= _BATCH_CHARS or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch


def _with_bos(ids: TokenIds, bos_id: int | None) -> TokenIds:
    return ids if bos_id is None else np.concatenate((np.array([bos_id], dtype=np.uint32), ids))


def _estimate(read_tokens: int, read_bytes: int, total_bytes: int | None) -> float | None:
    return None if total_bytes is None or not read_bytes else read_tokens / read_bytes * total_bytes


def _fraction(train_tokens: int, max_tokens: int | None, read_bytes: int, total_bytes: int | None) -> float | None:
    parts = []
    if max_tokens is not None:
        parts.append(train_tokens / max_tokens)
    if total_bytes:
        parts.append(read_bytes / total_bytes)
    return min(1.0, max(parts)) if parts else None


def _check_not_empty(train: SplitWriter, val: SplitWriter, hold_out: HoldOut) -> None:
    if not train.num_tokens and not val.num_tokens:
        raise DataError("the source holds no text", help="every document is empty; check the files or --text-column")
    if not train.num_tokens:
        raise DataError(
            f"all {val.num_tokens:,} tokens went to validation, none to training", help="choose a smaller --val-tokens"
        )
    if hold_out.val_tokens and not val.num_tokens:
        raise DataError(
            f"--val-tokens asks for {hold_out.val_tokens:,}, but no whole document could be held out",
            help="give more documents, or --val-tokens 0",
        )


def _notes(manifest: DataManifest, hold_out: HoldOut) -> tuple[str, ...]:
    notes = []
    train_tokens = manifest.splits["train"].num_tokens
    if hold_out.max_tokens is not None and train_tokens < hold_out.max_tokens:
        notes.append(f"the source ended at {train_tokens:,} of {hold_out.max_tokens:,} training tokens")
    if "val" not in manifest.splits and hold_out.val_tokens != 0:
        notes.append("there is no validation split: the source has too few documents to hold one out")
    return tuple(notes)
