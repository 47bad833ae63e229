"""Loss and gradient norm of a step, and its report: read at once, or while the device computes the next step.

Reading a number from a GPU waits for all work that was queued before, and the GPU is then idle until the next step is
queued. So if the optimizer can be told on the device to change nothing, the numbers of a step are copied without
waiting, and read when the next step has been queued. In both cases a loss or gradient that is not finite never reaches
the weights or the optimizer's state, neither in that step nor in the next.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from automodel_cli.engine.checkpoint.snapshot import TrainState
from automodel_cli.engine.config.declared_facts import optimizer_facts
from automodel_cli.engine.models.compiling import compile_seconds
from automodel_cli.engine.observe.metrics import ReportedNumber, Sink
from automodel_cli.engine.observe.speed import Speed
from automodel_cli.errors import TrainingDivergedError


class StepNumbers:
    """Loss in nats per token, the gradient's norm before clipping, and label tokens of one step.

    Args:
        on_device: Loss and norm, (2,), maybe still being computed.
        num_tokens: Number of label tokens of the step, over all ranks.
        reported: What the model and the loss report, (N,).
        units: Name and unit of each reported number.
    """

    def __init__(
        self,
        on_device: torch.Tensor,
        num_tokens: int,
        reported: torch.Tensor | None = None,
        units: Mapping[str, str] | None = None,
    ) -> None:
        self.num_tokens = num_tokens
        self._units = units or {}
        if reported is not None:
            on_device = torch.cat([on_device.double(), reported])
        self._event: torch.cuda.Event | None = None
        if on_device.device.type == "cuda":
            # Into pinned memory, or the copy would wait for the device after all.
            on_host = torch.empty(on_device.shape, dtype=on_device.dtype, pin_memory=True)
            self._numbers = on_host.copy_(on_device, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._numbers = on_device

    def read(self) -> tuple[float, float]:
        """Loss and norm; waits until they are computed.

        Raises:
            TrainingDivergedError: One of them is not finite.
        """
        if self._event is not None:
            self._event.synchronize()
        loss, norm, *_ = self._numbers.tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingDivergedError(
                f"the loss is {loss} and the norm of the gradient {norm}; both must be finite",
                help="a lower optimizer.lr, a longer warm-up or a smaller clip_grad_norm.max_norm often helps",
            )
        return loss, norm

    def reported(self) -> list[ReportedNumber]:
        """What the model and the loss report; to be called after `read`."""
        values = self._numbers.tolist()[2:]
        return [
            ReportedNumber(name, value, unit) for (name, unit), value in zip(self._units.items(), values, strict=True)
        ]


class DeviceGuard:
    """Steps an optimizer depending on numbers on the device; once one was not finite, never again.

    Args:
        optimizer: One for which `can_guard` is true.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._has_diverged: torch.Tensor | None = None

    def step(self, numbers: torch.Tensor) -> None:
        """The optimizer's step; without effect if `numbers` (2,) of this or an earlier step are not finite."""
        diverged = (~numbers.isfinite()).any().to(torch.float32)
        if self._has_diverged is not None:
            diverged = torch.maximum(diverged, self._has_diverged)
        self._has_diverged = diverged
        # As torch's own gradient scaler does: a fused kernel then leaves weights, moments and step counts unchanged.
        self._optimizer.found_inf = diverged  # type: ignore[attr-defined]
        try:
            self._optimizer.step()
        finally:
            del self._optimizer.found_inf  # type: ignore[attr-defined]


def can_guard(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer takes a flag on the device for every parameter, as its class declares (`skips_on_device`).

    Not for sharded parameters: how their fused kernels distribute the flag is not defined.
    """
    if not optimizer_facts(type(optimizer)).skips_on_device:
        return False
    groups = optimizer.param_groups
    is_whole = not any(hasattr(parameter, "device_mesh") for group in groups for parameter in group["params"])
    return is_whole and all(group.get("fused") for group in groups)


def guard_of(optimizer: torch.optim.Optimizer, device: torch.device) -> tuple[DeviceGuard | None, str | None]:
    """The guard of a run, and a fact about it for users; both None on a CPU, where reading costs nothing."""
    if device.type != "cuda":
        return None, None
    if can_guard(optimizer):
        return DeviceGuard(optimizer), "those of a step are read while the next one is computed"
    kind = type(optimizer).__name__
    return None, f"read after every step, as {kind} cannot be told on the device to leave a step out"


@dataclass(frozen=True)
class QueuedStep:
    """A step that is queued on the device.

    Args:
        numbers: Loss and norm, maybe still being computed.
        step: Number of the step, from 1.
        lr: Learning rate of its update.
        began: Value of `time.perf_counter()` when reading its data began.
        waited: Seconds of waiting for its data.
        tokens_seen: Label tokens of the run, this step included.
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
        speed: Makes the reports.
        memory_bytes: Returns the peak memory so far.
        is_late: Whether a step is reported only when the next one has been queued.
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
        """Reports the step, or the step before it if reports are late.

        Raises:
            TrainingDivergedError: The numbers of that step are not finite; it names the step.
        """
        if self._pending is not None:
            self._report(self._pending)
        self._pending = queued
        if not self._is_late:
            self.finish()

    def finish(self) -> None:
        """Reports the queued step. Must be called before the weights are used otherwise, or the run ends.

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
            # Compiling is no cost of training: with it, the speed of this step would say nothing about the next.
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
                reported=queued.numbers.reported(),
            )
        )
