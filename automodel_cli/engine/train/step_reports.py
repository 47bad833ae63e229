"""The reports of steps, each when its numbers are there: after the step, or when the next one has been queued."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from automodel_cli.engine.models.compiling import compile_seconds
from automodel_cli.engine.observe.metrics import Sink
from automodel_cli.engine.observe.speed import Speed
from automodel_cli.engine.train.state import TrainState
from automodel_cli.engine.train.step_numbers import StepNumbers
from automodel_cli.errors import TrainingDivergedError


@dataclass(frozen=True)
class QueuedStep:
    """A step that the device has been given.

    Args:
        numbers: Loss and norm, maybe still being computed.
        step: Its number, from 1.
        lr: Learning rate of its update.
        began: Moment of `time.perf_counter()` from which on it costs time: that of reading its data.
        waited: Seconds of waiting for its data.
        tokens_seen: Label tokens of the run up to its end.
    """

    numbers: StepNumbers
    step: int
    lr: float
    began: float
    waited: float
    tokens_seen: int


class StepReports:
    """Reports steps in their order.

    Args:
        state: Gets loss and seconds of every reported step.
        sink: Gets the reports.
        speed: Makes them.
        memory_bytes: Peak memory so far.
        is_late: Whether a step is reported when the next one has been queued.
    """

    def __init__(
        self, state: TrainState, sink: Sink, speed: Speed, memory_bytes: Callable[[], int], *, is_late: bool
    ) -> None:
        self._state = state
        self._sink = sink
        self._speed = speed
        self._memory_bytes = memory_bytes
        self._is_late = is_late
        self._pending: QueuedStep | None = None
        self._read_at = 0.0
        self._compiled = compile_seconds()

    def add(self, queued: QueuedStep) -> None:
        """Reports the step, or the one before it where reports are late.

        Raises:
            TrainingDivergedError: The numbers of that step are not finite; it names the step.
        """
        if self._pending is not None:
            self._report(self._pending)
        self._pending = queued
        if not self._is_late:
            self.finish()

    def finish(self) -> None:
        """Reports what has been queued; before anything that uses the weights or ends the run.

        Raises:
            TrainingDivergedError: As `add`.
        """
        if self._pending is not None:
            queued, self._pending = self._pending, None
            self._report(queued)

    def _report(self, queued: QueuedStep) -> None:
        try:
            loss, grad_norm = queued.numbers.read()
        except TrainingDivergedError as error:
            error.where = f"step {queued.step}"
            raise
        now = time.perf_counter()
        # A late step begins for the device when the one before it ends. Waiting for data belongs to its cost;
        # validation and saving do not.
        seconds = now - max(queued.began, self._read_at)
        self._read_at = now
        if (compiled := compile_seconds() - self._compiled) > 0:
            # Not a cost of training: the numbers of this step would say nothing about the next.
            self._sink.on_message(f"compiled for {compiled:.1f} s in step {queued.step}")
            seconds = max(seconds - compiled, 0.0)
            self._compiled += compiled
        self._state.train_seconds += seconds
        self._state.loss = loss
        self._sink.on_step(
            self._speed.stats(
                step=queued.step,
                loss=loss,
                grad_norm=grad_norm,
                lr=queued.lr,
                num_tokens=queued.numbers.num_tokens,
                step_seconds=seconds,
                memory_bytes=self._memory_bytes(),
                tokens_seen=queued.tokens_seen,
                data_wait_seconds=queued.waited,
            )
        )
