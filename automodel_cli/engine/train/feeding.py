"""What feeds a run: the loader of its samples, numbered or streamed, and its validation batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from automodel_cli.engine.config.check import Settings
from automodel_cli.engine.config.durations import in_tokens
from automodel_cli.engine.config.validation_sets import SECTION
from automodel_cli.engine.data.loader import BatchLoader, eval_batches
from automodel_cli.engine.data.order import order_of
from automodel_cli.engine.data.stream_loader import StreamLoader, is_stream, stream_batches
from automodel_cli.engine.train.build import RunParts
from automodel_cli.engine.train.state import TrainState, restore_rng, rng_tensors
from automodel_cli.engine.train.validation import Validation, up_to_tokens
from automodel_cli.errors import ConfigError


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

    The first samples of every numbered set are read and checked here: a run that finds its validation set broken
    when it is first needed has trained in vain.

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
        described = parts.sections[f"{SECTION}.{name}" if name else SECTION]
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
