"""Bridges the older sources to batches of documents."""

from __future__ import annotations

import json
from collections.abc import Iterator

from automodel_cli.engine.prep.documents import DocumentBatch, Source, SourceDescription, SourceOptions
from automodel_cli.engine.prep.sources import Source as OldSource
from automodel_cli.engine.prep.sources import open_source as open_old
from automodel_cli.engine.prep.tokenizer import replace_surrogates
from automodel_cli.engine.shards.manifest import SourceRecord


class _Batched:
    def __init__(self, old: OldSource, name: str) -> None:
        self._old = old
        self._name = name
        self.total_bytes = old.total_bytes

    def record(self) -> SourceRecord:
        return self._old.record()

    def describe(self) -> SourceDescription:
        return SourceDescription("files", (self._name,), None, True)

    def partition(self, index: int, count: int) -> Source:
        raise NotImplementedError

    def batches(self, start: str | None = None) -> Iterator[DocumentBatch]:
        import pyarrow as pa

        skip = 0 if start is None else json.loads(start)
        texts, size, skipped, first, read = [], 0, 0, 0, 0
        for number, document in enumerate(self._old.documents(), start=1):
            if number <= skip:
                first += bool(document.text.strip())
                continue
            read = number
            size += document.source_bytes
            if document.text.strip():
                texts.append(replace_surrogates(document.text))
            else:
                skipped += 1
            if len(texts) >= 1024 or size > 1 << 22:
                yield DocumentBatch(
                    pa.array(texts, pa.large_string()),
                    size,
                    json.dumps(number),
                    {"empty": skipped} if skipped else {},
                    first,
                    "",
                )
                first += len(texts)
                texts, size, skipped = [], 0, 0
        if texts or skipped:
            yield DocumentBatch(
                pa.array(texts, pa.large_string()),
                size,
                json.dumps(read),
                {"empty": skipped} if skipped else {},
                first,
                "",
            )


def open_source(options: SourceOptions) -> Source:
    """The source that a user names."""
    return _Batched(open_old(options.sources[0], options.text_column or "text"), options.sources[0])
