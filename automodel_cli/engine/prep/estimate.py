"""What a preparation would do, estimated from the beginning of its source; nothing is written."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from automodel_cli.engine.prep.fast_engine import choose_engine, user_cache_dir
from automodel_cli.engine.prep.left_out import FirstSkipped, add_skipped, left_out_notes
from automodel_cli.engine.prep.pipeline import chunks_of
from automodel_cli.engine.prep.prep_options import PrepOptions
from automodel_cli.engine.prep.prep_plan import make_plan
from automodel_cli.engine.prep.prepare import no_text_left
from automodel_cli.engine.prep.reading import Position, read_units
from automodel_cli.engine.prep.tokenizer import offsets_of


@dataclass(frozen=True)
class Estimate:
    """What would be done.

    Attributes:
        directory: Where the shards would go.
        kind: As in `SourceDescription`, and so are `names` and `text_column`.
        engine: What would make the tokens.
        bytes_per_token: Size of a token in the shards.
        text_bytes_per_token: In the sample.
        sample_documents: Documents that the estimate comes from.
        num_tokens: Estimate for all splits; `None` if neither a budget nor the size of the source is known.
        output_bytes: The same in bytes.
        seconds: Estimated time; `None` as above.
        skipped: Documents left out up to the end of the sample, by reason.
        first_skipped: The first of each, as in the manifest.
    """

    directory: Path
    kind: str
    names: tuple[str, ...]
    text_column: str | None
    tokenizer: str
    engine: str
    vocab_size: int
    bytes_per_token: int
    text_bytes_per_token: float
    sample_documents: int
    num_tokens: int | None
    output_bytes: int | None
    seconds: float | None
    notes: tuple[str, ...]
    skipped: Mapping[str, int]
    first_skipped: FirstSkipped

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "directory": str(self.directory), "names": list(self.names), "notes": list(self.notes)}


def estimate(options: PrepOptions) -> Estimate:
    """Read and tokenize the first documents, and say what the whole would come to.

    Raises:
        UsageError: As for `prepare`.
        DataError: As for `prepare`, or the source holds no text.
    """
    plan = make_plan(options)
    begin = time.perf_counter()
    units = read_units(plan.source, Position(), options.seed, 0)
    sample = None
    skipped: Mapping[str, int] = {}
    first_skipped: FirstSkipped = {}
    for unit in units:
        skipped, first_skipped = add_skipped(skipped, first_skipped, unit)
        if len(unit.texts):
            sample = unit
            break
    read_seconds = time.perf_counter() - begin
    if sample is None:
        raise no_text_left(plan, skipped, first_skipped)
    choice = choose_engine(plan.tokenizer, sample.texts, user_cache_dir())
    begin = time.perf_counter()
    tokens = sum(
        len(plan.framing.frame(choice.encoder.encode_batch(chunk), np.diff(offsets_of(chunk))).tokens)
        for chunk in chunks_of(sample.texts, options.chunk_size)
    )
    token_seconds = time.perf_counter() - begin
    corpus = plan.source.total_bytes
    # Without tokens or bytes in the sample there is nothing to extrapolate from.
    in_source = round(tokens / sample.source_bytes * corpus) if corpus and sample.source_bytes else None
    wanted = None
    if plan.hold_out.max_tokens is not None:
        wanted = plan.hold_out.max_tokens + (plan.hold_out.val_tokens or 0)
    num_tokens = min((count for count in (in_source, wanted) if count is not None), default=None)
    # The stages overlap, and only tokenizing has several threads.
    per_token = max(read_seconds, token_seconds / options.workers) / max(tokens, 1)
    description = plan.source.description
    text_bytes = int(np.diff(offsets_of(sample.texts)).sum())
    itemsize = plan.framing.dtype.itemsize
    limit = options.reading.max_document_bytes
    notes = left_out_notes(first_skipped, limit, can_convert=description.can_be_converted)
    return Estimate(
        directory=plan.directory,
        kind=description.kind,
        names=description.names,
        text_column=description.text_column,
        tokenizer=plan.tokenizer.name,
        engine=choice.encoder.engine,
        vocab_size=plan.tokenizer.vocab_size,
        bytes_per_token=itemsize,
        text_bytes_per_token=text_bytes / max(tokens, 1),
        sample_documents=len(sample.texts),
        num_tokens=num_tokens,
        output_bytes=None if num_tokens is None else num_tokens * itemsize,
        seconds=None if num_tokens is None else num_tokens * per_token,
        notes=(*([] if choice.note is None else [choice.note]), *notes),
        skipped=skipped,
        first_skipped=first_skipped,
    )
