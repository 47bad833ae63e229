"""Validation sets, their reports, and the loss by which the best checkpoint is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from automodel_cli.engine.observe.metrics import SetStats, ValStats
from automodel_cli.engine.protocols import IGNORED_LABEL, MapDataset
from automodel_cli.engine.train.state import TrainState
from automodel_cli.engine.train.step import EvalResult

Batches = Iterable[dict[str, Any]]


@dataclass(frozen=True)
class Validation:
    """The validation sets of a run.

    Args:
        datasets: Datasets by name; a single one may have an empty name.
        batches_of: Reads the set of a name from its beginning; the same batches every time.
        best_metric_key: `val_loss`, or `val_loss/NAME` for one of several sets.
    """

    datasets: Mapping[str, MapDataset]
    batches_of: Callable[[str], Batches]
    best_metric_key: str = "val_loss"

    def sets(self) -> Iterator[tuple[str, Batches]]:
        """Name and batches of each."""
        for name in self.datasets:
            yield name, self.batches_of(name)

    def record(self, results: Mapping[str, EvalResult], state: TrainState) -> tuple[ValStats, float]:
        """The report of a validation, and the loss by which checkpoints are compared; `state` remembers `val_loss`."""
        found = {name: _set_stats(result, self.datasets[name]) for name, result in results.items()}
        # The mean over the sets, whatever their sizes: a larger set is no more important.
        loss = sum(stats.val_loss for stats in found.values()) / len(found)
        alone = next(iter(found.values())) if len(found) == 1 else None
        stats = ValStats(
            state.step,
            loss,
            _perplexity(loss),
            sum(stats.num_tokens for stats in found.values()),
            alone.val_bits_per_byte if alone is not None else None,
            {name: stats for name, stats in found.items() if name},
        )
        state.val_loss = loss
        return stats, stats.flat()[self.best_metric_key]


def up_to_tokens(batches: Batches, num_tokens: int) -> Batches:
    """The first batches that have at least `num_tokens` label tokens together; all batches if they have less."""
    seen = 0
    for batch in batches:
        yield batch
        seen += int((batch["labels"] != IGNORED_LABEL).sum())
        if seen >= num_tokens:
            return


def bytes_per_token(dataset: MapDataset) -> float | None:
    """UTF-8 bytes of text per token, as counted by `amcli prep`; None for data without its manifest.

    The mean over the whole split that the dataset's shards belong to; a BOS token has no bytes.
    """
    manifest, shards = getattr(dataset, "manifest", None), getattr(dataset, "shards", ())
    names = {info.path.name for info in shards}
    for split in manifest.splits.values() if manifest is not None and names else ():
        if names <= {record.name for record in split.shards} and split.text_bytes > 0:
            return float(split.text_bytes / split.num_tokens)
    return None


def _set_stats(result: EvalResult, dataset: MapDataset) -> SetStats:
    per_token = bytes_per_token(dataset)
    bits = None if per_token is None else result.loss / math.log(2) / per_token
    return SetStats(result.loss, _perplexity(result.loss), result.num_tokens, bits)


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf  # exp overflows a float at 709
