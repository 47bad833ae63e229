"""From text to token shards: read, tokenize, split, write, and the manifest last.

Guarantees: the training split has exactly the number of tokens that was asked for (or the
whole text, if that is less); validation is made of whole documents that are in no training
shard; the same source and settings give the same bytes, for any number of threads and however
often the work was stopped and taken up again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from automodel_cli.engine.durable import explain_write_errors
from automodel_cli.engine.prep.corpus.files import TEXT
from automodel_cli.engine.prep.corpus.open_source import open_source
from automodel_cli.engine.prep.left_out import FirstSkipped, add_skipped, left_out_notes, nothing_left
from automodel_cli.engine.prep.output_dir import check_complete, check_same, claimed, clear, identity
from automodel_cli.engine.prep.pipeline import Committer
from automodel_cli.engine.prep.prep_options import PrepOptions, ignore
from automodel_cli.engine.prep.prep_plan import Plan, make_plan, output_directory
from automodel_cli.engine.prep.progress import PROGRESS_NAME, Reading, Unfinished, load_progress
from automodel_cli.engine.prep.session import OnNote, OnProgress, PrepProgress, Session
from automodel_cli.engine.shards.manifest import DataManifest, ReadingRecord, load_manifest, write_manifest
from automodel_cli.errors import DataError

# The options have a file of their own, without numpy, for the command line; callers may import them from here.
__all__ = ["PrepOptions", "PrepProgress", "PrepResult", "prepare"]


@dataclass(frozen=True)
class PrepResult:
    """What lies in the directory now.

    Attributes:
        reused: They were there already, made with the same settings, and were left alone.
        notes: What the user should know, such as a text smaller than the budget.
        resumed_tokens: Tokens that earlier, interrupted runs had made.
        seconds: How long this run took, start-up left out; 0 if nothing was to be done.
        stages: The part of that time that each stage worked, 0 to 1.
    """

    directory: Path
    manifest: DataManifest
    reused: bool
    notes: tuple[str, ...]
    resumed_tokens: int = 0
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float:
        """Speed of this run; 0 if there was nothing to do."""
        return (self.manifest.num_tokens - self.resumed_tokens) / self.seconds if self.seconds else 0.0


def prepare(options: PrepOptions, on_progress: OnProgress = ignore, on_note: OnNote = ignore) -> PrepResult:
    """Turn text into token shards; go on with unfinished ones, or leave finished ones alone.

    Args:
        options: What to make.
        on_progress: Called after every batch of documents.
        on_note: Called at once with what the user should know while the work goes on.

    Raises:
        UsageError: The source is not known, or a number is out of range.
        DataError: The text, the tokenizer or the directory cannot be used.
    """
    options.check()
    directory = output_directory(options)
    existing = None if options.overwrite else load_manifest(directory)
    begun = None if options.overwrite or existing is not None else load_progress(directory)
    plan = make_plan(options, _revision(existing, begun))
    if existing is not None:
        check_same(directory, identity(existing), identity(plan.manifest), "data")
        check_complete(directory, existing)
        # A run that was killed just before its end leaves this file.
        with explain_write_errors(directory / PROGRESS_NAME):
            (directory / PROGRESS_NAME).unlink(missing_ok=True)
        return PrepResult(directory, existing, True, _notes(existing, plan))
    with claimed(directory, overwrite=options.overwrite) as unfinished, Committer() as committer:
        session = Session(plan, committer, on_progress, on_note)
        try:
            _take_up(session, plan, unfinished, on_note)
            resumed_tokens = session.train_tokens + session.val_tokens
            session.run()
            _check_not_empty(session, plan, committer)
            manifest = replace(
                plan.manifest,
                splits=session.close(),
                reading=ReadingRecord(
                    session.reading.num_texts,
                    session.reading.source_bytes,
                    dict(session.reading.skipped),
                    {reason: dict(first) for reason, first in session.reading.first_skipped.items()},
                ),
                versions={**plan.manifest.versions, "tokenizer_engine": session.engine},
            )
        finally:
            session.release()
        write_manifest(directory, manifest)
    return PrepResult(
        directory,
        manifest,
        False,
        _notes(manifest, plan),
        resumed_tokens,
        session.seconds,
        session.stages,
    )


def _revision(existing: DataManifest | None, begun: Unfinished | None) -> str | None:
    if existing is not None:
        return existing.source.revision
    return None if begun is None else begun.identity.get("source revision")


def _take_up(session: Session, plan: Plan, unfinished: Unfinished | None, on_note: OnNote) -> None:
    """Go on where an earlier run ended, or begin."""
    directory = plan.directory
    if unfinished is not None and unfinished.splits:
        check_same(directory, unfinished.identity, identity(plan.manifest), "unfinished data")
        if plan.source.description.resumable:
            session.continue_from(unfinished)
            on_note(f"going on after {session.train_tokens + session.val_tokens:,} tokens of an interrupted run")
            return
        on_note("an interrupted run is started again: its source can be read only from its beginning")
    clear(directory, allowed=True)
    session.begin()


def _check_not_empty(session: Session, plan: Plan, committer: Committer) -> None:
    error = _emptiness(session.train_tokens, session.val_tokens, plan, session.reading)
    if error is not None:
        # Nothing here is worth continuing, and it must not make other settings be refused. Writes in progress are
        # waited for: their files would come back after the deletion.
        committer.wait()
        session.release()
        clear(plan.directory, allowed=True)
        raise error


def _emptiness(train_tokens: int, val_tokens: int, plan: Plan, reading: Reading) -> DataError | None:
    hold_out = plan.hold_out
    if not train_tokens and not val_tokens and reading.num_texts:
        name = plan.tokenizer.name
        return DataError(
            f"the tokenizer {name!r} made no token of {reading.num_texts:,} documents", help="try another --tokenizer"
        )
    if not train_tokens and not val_tokens:
        return no_text_left(plan, reading.skipped, reading.first_skipped)
    if not train_tokens:
        return DataError(
            f"all {val_tokens:,} tokens went to validation, none to training", help="choose a smaller --val-tokens"
        )
    if hold_out.val_tokens and not val_tokens:
        return DataError(
            f"--val-tokens asks for {hold_out.val_tokens:,}, but no whole document could be held out",
            help="give more documents, or --val-tokens 0",
        )
    return None


def no_text_left(plan: Plan, skipped: Mapping[str, int], first_skipped: FirstSkipped) -> DataError:
    """The error for a source, or a part of one, without any text.

    Args:
        plan: What was to be made.
        skipped: Documents left out, by reason.
        first_skipped: The first of each.
    """
    limit, source = plan.options.reading.max_document_bytes, plan.source.description
    part = plan.options.partition
    if part is None:
        return nothing_left(skipped, first_skipped, limit, source=source)
    message = f"part {part} of the source holds no text"
    if not skipped:
        # The part is empty; the reason may be in the rest of the source.
        for batch in open_source(plan.options.reading).batches():
            if len(batch.texts):
                return DataError(message, help="the source is too small: make fewer parts")
            skipped, first_skipped = add_skipped(skipped, first_skipped, batch)
        message = "the whole source holds no text"
    return nothing_left(skipped, first_skipped, limit, source=source, of=f"{message}: ")


def _notes(manifest: DataManifest, plan: Plan) -> tuple[str, ...]:
    hold_out, part = plan.hold_out, plan.options.partition
    notes = []
    train_tokens = manifest.splits["train"].num_tokens
    if hold_out.max_tokens is not None and train_tokens < hold_out.max_tokens:
        ended = f"ended at {train_tokens:,} of {hold_out.max_tokens:,} training tokens"
        whole = manifest.settings["max_tokens"]
        notes.append(
            f"the source {ended}"
            if part is None
            else f"part {part} {ended}, its share of --max-tokens {whole:,}; no other part makes up for what is missing"
        )
    unknown_tokens = sum(split.unknown_tokens for split in manifest.splits.values())
    if unknown_tokens:
        share = unknown_tokens / manifest.num_tokens
        notes.append(
            f"{unknown_tokens:,} of {manifest.num_tokens:,} tokens ({share:.2%}) stand for text that the tokenizer "
            f"{manifest.tokenizer.name!r} has no entry for; it is lost"
        )
    if "val" not in manifest.splits and hold_out.val_tokens != 0:
        note = "there is no validation split: the source has too few documents to hold one out"
        is_text = any(ending in manifest.source.name for ending in TEXT)
        if is_text and manifest.settings["text_documents"] != "line":
            note += "; --text-documents line --overwrite makes each line one"
        notes.append(note)
    if manifest.reading is not None:
        first, can_convert = manifest.reading.first_skipped, plan.source.description.can_be_converted
        notes += left_out_notes(first, plan.options.reading.max_document_bytes, can_convert=can_convert)
    return tuple(notes)
