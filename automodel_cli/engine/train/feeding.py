"""What feeds a run: the loader of its samples, numbered or streamed, and its validation batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from automodel_cli.engine.config.check import Settings
from automodel_cli.engine.config.durations import in_tokens
from automodel_cli.engine.data.loader import BatchLoader, eval_batches
from automodel_cli.engine.data.order import order_of
from automodel_cli.engine.data.stream_loader import StreamLoader, is_stream, stream_batches
from automodel_cli.engine.train.state import TrainState
from automodel_cli.engine.train.validation import Validation, up_to_tokens
from automodel_cli.errors import ConfigError

if TYPE_CHECKING:
    from automodel_cli.engine.distributed.team import Team


def loader_of(
    dataset: Any, settings: Settings, state: TrainState, team: Team | None, vocab_size: int | None
) -> BatchLoader | StreamLoader:
    """The loader of a dataset; that of a stream goes on where `state` says.

    Raises:
        AmcliError: The sizes do not fit, or the dataset is neither numbered nor iterable.
    """
    sizes: dict[str, Any] = {
        "global_batch_size": settings.step_scheduler.global_batch_size,
        "local_batch_size": settings.step_scheduler.micro_batch_size,
        "dp_rank": team.dp_rank if team else 0,
        "dp_size": team.degrees.dp if team else 1,
        "num_workers": settings.dataloader.num_workers,
        "prefetch_factor": settings.dataloader.prefetch_factor,
        "vocab_size": vocab_size,
        # In the order in which their gradients are added.
        "interleaved": settings.general.deterministic == "elastic",
    }
    if not is_stream(dataset):
        return BatchLoader(dataset, order_of(dataset, settings.general.seed), **sizes)
    loader = StreamLoader(dataset, **sizes)
    loader.restore(state.samples_consumed, state.stream)
    return loader


def validation_of(
    datasets: Mapping[str, Any], settings: Settings, team: Team | None, vocab_size: int | None
) -> Validation | None:
    """The validation of a run, or None where there is no set to validate on.

    Raises:
        ConfigError: A stream, which may never end, is to be read to its end.
    """
    section = settings.step_scheduler
    budget = None if section.val_tokens is None else in_tokens(section.val_tokens)
    most = section.val_batches if budget is None else None
    for name, dataset in datasets.items():
        if is_stream(dataset) and budget is None and most is None:
            raise ConfigError(
                f"the validation set {name or type(dataset).__name__} is a stream, which may never end",
                help="set step_scheduler.val_batches or step_scheduler.val_tokens",
            )

    def batches_of(dataset: Any) -> Iterable[dict[str, Any]]:
        read = stream_batches if is_stream(dataset) else eval_batches
        batches: Iterable[dict[str, Any]] = read(dataset, section.micro_batch_size, most, vocab_size=vocab_size)
        batches = batches if budget is None else up_to_tokens(batches, budget)
        return batches if team is None else team.dealt(batches)

    return Validation(datasets, batches_of, settings.checkpoint.best_metric_key) if datasets else None
