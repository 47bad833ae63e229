"""The training loop: read, step, report, validate, save, until the last step or a signal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from automodel_cli.engine.data.loader import BatchLoader
from automodel_cli.engine.observe.metrics import Sink, ValStats
from automodel_cli.engine.observe.speed import Speed
from automodel_cli.engine.optim.lr_schedule import LRSchedule
from automodel_cli.engine.train.device import Placement
from automodel_cli.engine.train.objective import Objective
from automodel_cli.engine.train.signals import StopSignal
from automodel_cli.engine.train.state import TrainState
from automodel_cli.engine.train.step import evaluate, train_step
from automodel_cli.engine.train.step_scheduler import StepScheduler
from automodel_cli.errors import TrainingDivergedError


@dataclass(frozen=True)
class Run:
    """Everything that the loop works with; built by `recipe.py`.

    Args:
        validation_batches: Makes the fixed validation set anew, in the same order each time.
        save: Writes a checkpoint of the state; the flag says whether it is the best so far.
    """

    model: nn.Module
    loss_fn: Objective
    optimizer: torch.optim.Optimizer
    schedule: LRSchedule
    loader: BatchLoader
    validation_batches: Callable[[], Iterable[dict[str, Any]]] | None
    steps: StepScheduler
    max_norm: float | None
    placement: Placement
    sink: Sink
    speed: Speed
    save: Callable[[TrainState, bool], None]


def train(run: Run, state: TrainState, stop: StopSignal) -> None:
    """Trains from `state` to the last step, or until a stop signal.

    `state` is advanced in place; every step that it counts is in a checkpoint when this returns.

    Raises:
        TrainingDivergedError: The loss or the gradient is not finite; the weights are as before that step.
    """
    saved_step = state.step
    with closing(run.loader.iter_steps(state.samples_consumed)) as steps:
        while not run.steps.is_last(state.step) and not stop.requested:
            read_from = time.perf_counter()
            micro_batches = next(steps)
            _one_step(run, state, micro_batches, waited=time.perf_counter() - read_from)
            is_best = run.steps.validates(state.step) and _validate(run, state, stop)
            if run.steps.saves(state.step):
                run.save(state, is_best)
                saved_step = state.step
    if state.step != saved_step:
        run.save(state, False)


def _one_step(run: Run, state: TrainState, micro_batches: list[dict[str, Any]], waited: float) -> None:
    lr = run.schedule.lr(state.step)
    started = time.perf_counter()
    try:
        result = train_step(
            run.model,
            run.loss_fn,
            run.optimizer,
            micro_batches,
            device=run.placement.device,
            lr=lr,
            max_norm=run.max_norm,
            autocast_dtype=run.placement.autocast_dtype,
        )
    except TrainingDivergedError as error:
        error.where = f"step {state.step + 1}"
        raise
    # Waiting for data belongs to a step's cost; validation and saving do not.
    seconds = time.perf_counter() - started + waited
    state.step += 1
    state.samples_consumed += sum(len(batch["input_ids"]) for batch in micro_batches)
    state.tokens_seen += result.num_tokens
    state.train_seconds += seconds
    state.loss = result.loss
    run.sink.on_step(
        run.speed.stats(
            step=state.step,
            loss=result.loss,
            grad_norm=result.grad_norm,
            lr=lr,
            num_tokens=result.num_tokens,
            step_seconds=seconds,
            memory_bytes=run.placement.memory_bytes(),
            tokens_seen=state.tokens_seen,
            data_wait_seconds=waited,
        )
    )


def _validate(run: Run, state: TrainState, stop: StopSignal) -> bool:
    """Validates and reports; True if it is the best loss so far. A stop signal cuts it short, unreported."""
    if run.validation_batches is None:
        return False
    result = evaluate(
        run.model,
        run.loss_fn,
        run.validation_batches(),
        device=run.placement.device,
        autocast_dtype=run.placement.autocast_dtype,
        should_stop=lambda: stop.requested,
    )
    if stop.requested:
        return False
    state.val_loss = result.loss
    perplexity = math.exp(result.loss) if result.loss < 700 else math.inf  # exp overflows a float at 709
    run.sink.on_validation(ValStats(state.step, result.loss, perplexity, result.num_tokens))
    is_best = state.best_val_loss is None or result.loss < state.best_val_loss
    if is_best:
        state.best_val_loss = result.loss
    return is_best
