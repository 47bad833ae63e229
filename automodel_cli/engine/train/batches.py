"""The batches of a run: the loader of its training samples, and its validation sets with their reports."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from automodel_cli.engine.checkpoint.snapshot import TrainState
from automodel_cli.engine.config.settings import Settings
from automodel_cli.engine.config.target_sections import VALIDATION
from automodel_cli.engine.config.values import in_tokens
from automodel_cli.engine.data.loader import BatchLoader, eval_batches
from automodel_cli.engine.data.order import order_of
from automodel_cli.engine.data.stream_loader import StreamLoader, is_stream, stream_batches
from automodel_cli.engine.observe.metrics import SetStats, ValStats
from automodel_cli.engine.protocols import IGNORED_LABEL, MapDataset
from automodel_cli.engine.train.build import RunParts
from automodel_cli.engine.train.generators import restore_rng, rng_tensors
from automodel_cli.engine.train.step import EvalResult
from automodel_cli.errors import ConfigError

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


def loader_of(parts: RunParts, settings: Settings, state: TrainState) -> BatchLoader | StreamLoader:
    """The loader of the dataset; that of a stream goes on where `state` says.

    Raises:
        AmcliError: The sizes do not fit, or the dataset is neither numbered nor iterable.
    """
    group = parts.model.group
    sizes: dict[str, Any] = {
        "global_batch_size": settings.step_scheduler.global_batch_size,
        "local_batch_size": settings.step_scheduler.micro_batch_size,
        "dp_rank": group.dp_rank,
        "dp_size": group.degrees.dp,
        "num_workers": settings.dataloader.num_workers,
        "prefetch_factor": settings.dataloader.prefetch_factor,
        "vocab_size": parts.vocab_size,
        "section": parts.sections["dataset"],
        # In the order in which their gradients are added.
        "interleaved": settings.general.deterministic == "elastic",
    }
    dataset: Any = parts.dataset
    if not is_stream(dataset):
        return BatchLoader(dataset, order_of(dataset, settings.general.seed), **sizes)
    loader = StreamLoader(dataset, **sizes)
    loader.restore(state.samples_consumed, state.stream)
    return loader


def validation_of(parts: RunParts, settings: Settings) -> Validation | None:
    """The validation of a run, or None where there is no set to validate on.

    The first samples of every numbered set are read and checked here: a run must not
    train in vain until it first needs a broken set.

    Raises:
        ConfigError: A stream, which may never end, is to be read to its end.
        DataError: A set is not what `MapDataset` asks for.
    """
    section, datasets = settings.step_scheduler, parts.validation
    budget = None if section.val_tokens is None else in_tokens(section.val_tokens)
    most = section.val_batches if budget is None else None
    for name, dataset in datasets.items():
        if is_stream(dataset) and budget is None and most is None:
            raise ConfigError(
                f"the validation set {name or type(dataset).__name__} is a stream, which may never end",
                help="set step_scheduler.val_batches or step_scheduler.val_tokens",
            )

    def read(name: str, num_batches: int | None) -> Iterator[dict[str, Any]]:
        read_from: Any = stream_batches if is_stream(datasets[name]) else eval_batches
        described = parts.sections[f"{VALIDATION}.{name}" if name else VALIDATION]
        batches: Iterator[dict[str, Any]] = read_from(
            datasets[name], section.micro_batch_size, num_batches, vocab_size=parts.vocab_size, section=described
        )
        return batches

    def batches_of(name: str) -> Iterable[dict[str, Any]]:
        batches: Iterable[dict[str, Any]] = read(name, most)
        batches = batches if budget is None else up_to_tokens(batches, budget)
        return parts.model.group.split_batches(batches)

    def check() -> None:
        for name, dataset in datasets.items():
            if not is_stream(dataset):
                next(read(name, 1), None)

    generators = rng_tensors()
    parts.model.group.on_every_rank(check)
    restore_rng(generators)  # a set that draws numbers must not change those of the training
    return Validation(datasets, batches_of, settings.checkpoint.best_metric_key) if datasets else None


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
