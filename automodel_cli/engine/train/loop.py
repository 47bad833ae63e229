"""The training loop: read, step, report, validate, save, until the last step or a signal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch

from automodel_cli.engine.checkpoint.snapshot import TrainState
from automodel_cli.engine.data.loader import BatchLoader
from automodel_cli.engine.data.stream_loader import StreamLoader
from automodel_cli.engine.distributed.heartbeat import Phase, enter
from automodel_cli.engine.distributed.parallel_model import ParallelModel
from automodel_cli.engine.observe.metrics import Sink
from automodel_cli.engine.observe.speed import Speed
from automodel_cli.engine.optim.lr_schedule import Schedule
from automodel_cli.engine.train.batches import Validation
from automodel_cli.engine.train.checkpoint_manager import CheckpointManager
from automodel_cli.engine.train.device import Placement
from automodel_cli.engine.train.elastic import Elastic
from automodel_cli.engine.train.objective import Objective
from automodel_cli.engine.train.reported_metrics import ReportedMetrics
from automodel_cli.engine.train.signals import StoppedWaitingError, StopSignal
from automodel_cli.engine.train.step import EvalResult, evaluate, label_tokens, queue_step
from automodel_cli.engine.train.step_numbers import DeviceGuard, QueuedStep, StepReports
from automodel_cli.engine.train.step_scheduler import StepScheduler
from automodel_cli.errors import PeerFailedError, TrainingDivergedError


@dataclass(frozen=True)
class Run:
    """The parts that the loop works with; built by `recipe.py`.

    Args:
        validation: The validation sets; None without any.
        checkpoints: When the run is saved, and what follows if saving fails.
        samples_per_step: Samples of a step, over all ranks.
        guard: With it, loss and norm of a step are read when the next step has been queued.
        elastic: Set if the bits of the run must not depend on the number of ranks.
        reported: Collects what the model and the loss report.
    """

    model: ParallelModel
    loss_fn: Objective
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    loader: BatchLoader | StreamLoader
    validation: Validation | None
    steps: StepScheduler
    max_norm: float | None
    placement: Placement
    sink: Sink
    speed: Speed
    checkpoints: CheckpointManager
    samples_per_step: int
    guard: DeviceGuard | None = None
    elastic: Elastic | None = None
    reported: ReportedMetrics = field(default_factory=ReportedMetrics)


def train(run: Run, state: TrainState, stop: StopSignal) -> None:
    """Trains from `state` to the last step, or until a stop signal; saves when asked to in between.

    `state` is advanced in place; every step that it counts is in a checkpoint when this returns.

    Raises:
        CheckpointError: A save failed that must not: the last one, or any unless `on_save_error` is `warn`.
        TrainingDivergedError: The loss or the gradient is not finite; the weights are as before that step.
    """
    try:
        _train(run, state, stop)
    finally:
        enter(Phase.ENDING)


def _train(run: Run, state: TrainState, stop: StopSignal) -> None:
    reports = StepReports(state, run.sink, run.speed, run.placement.memory_bytes, is_late=run.guard is not None)
    with closing(run.loader.iter_steps(state.samples_consumed)) as steps, run.checkpoints as checkpoints:
        while not run.steps.is_last(state.step):
            read_from = time.perf_counter()
            enter(Phase.READING, state.step + 1)
            data = _next_step(run, steps, stop)
            if data is None:
                break
            waited = time.perf_counter() - read_from
            if stop.save_agreed:
                reports.finish()
                checkpoints.save_on_request()
            enter(Phase.TRAINING)
            reports.add(_queue(run, state, *data, waited=waited))
            if run.steps.validates(state.step) or run.steps.saves(state.step):
                reports.finish()
            checkpoints.set_val_loss(_validate(run, state, stop) if run.steps.validates(state.step) else None)
            checkpoints.save_if_due()
        reports.finish()
        checkpoints.finish()


def _next_step(
    run: Run, steps: Iterator[list[dict[str, Any]]], stop: StopSignal
) -> tuple[list[dict[str, Any]], int] | None:
    """The micro-batches of this rank and the label tokens of all ranks; None if a rank wants to stop.

    All ranks leave this in the same way, or none could take the next step; they agree on saving, too.
    """
    group, failure, micro_batches = run.model.group, None, []
    try:
        with stop.waiting():
            micro_batches = [group.part_of_sequence(batch) for batch in next(steps)]
    except StoppedWaitingError:
        micro_batches = []  # the other ranks learn of it below
    except Exception as error:  # a dataset may raise anything; the other ranks must learn of it first
        failure = error
    enter(Phase.SYNCHRONISING)
    requests = (int(stop.requested), int(stop.save_requested), int(failure is not None))
    counted = group.counted_once(label_tokens(micro_batches))
    num_tokens, stops, saves, failures, *saving = group.all_reduce_ints(counted, *requests, *run.checkpoints.status)
    if failure is not None:
        raise failure
    if failures:
        raise PeerFailedError("another rank could not read its data")
    stop.agree(stops > 0, saves > 0)
    run.checkpoints.update(*saving)
    return None if stops else (micro_batches, num_tokens)


def _queue(
    run: Run, state: TrainState, micro_batches: list[dict[str, Any]], num_tokens: int, waited: float
) -> QueuedStep:
    """Queues the next step on the device, and counts it."""
    lr = run.schedule.lr(state.step)
    began = time.perf_counter() - waited
    try:
        numbers = queue_step(
            run.model,
            run.loss_fn,
            run.optimizer,
            micro_batches,
            device=run.placement.device,
            lr=lr,
            max_norm=run.max_norm,
            autocast_dtype=run.placement.autocast_dtype,
            num_label_tokens=num_tokens,
            guard=run.guard,
            elastic=None if run.elastic is None else run.elastic.at(state.step),
            reported=run.reported,
        )
    except TrainingDivergedError as error:
        error.where = f"step {state.step + 1}"
        raise
    state.step += 1
    state.samples_consumed += run.samples_per_step
    state.tokens_seen += num_tokens
    return QueuedStep(numbers, state.step, lr, began, waited, state.tokens_seen)


def _validate(run: Run, state: TrainState, stop: StopSignal) -> float | None:
    """Validates and reports; returns the loss by which `BEST` is chosen. A stop signal ends it without a report."""
    if run.validation is None:
        return None
    enter(Phase.VALIDATING, state.step)
    results: dict[str, EvalResult] = {}
    for name, batches in run.validation.sets():
        results[name] = evaluate(
            run.model,
            run.loss_fn,
            batches,
            device=run.placement.device,
            autocast_dtype=run.placement.autocast_dtype,
            should_stop=lambda: _wants_to_stop(run, stop),
        )
        if _wants_to_stop(run, stop):
            return None
    stats, judged = run.validation.record(results, state)
    run.sink.on_validation(stats)
    return judged


def _wants_to_stop(run: Run, stop: StopSignal) -> bool:
    """Whether any rank has been asked to stop. All ranks must leave a validation together."""
    # Only the common answer counts: a signal may reach this rank right after the all-reduce.
    stops = run.model.group.any(stop.requested)
    stop.agree(stops)
    return stops
