"""From the raw facts of a step to the numbers that are reported: rates, utilisation, time left."""

from __future__ import annotations

from collections import deque

from automodel_cli.engine.observe.metrics import StepStats

# Long enough to even out single slow steps, short enough to follow a change of the machine.
_WINDOW_STEPS = 50


class Speed:
    """Makes the report of each step.

    Args:
        max_steps: The last step of the run.
        num_devices: Devices that work on a step together.
        flops_per_token: What a label token costs, forward and backward; None where nobody knows.
        peak_flops: FLOP/s of one device; None where nobody knows.
    """

    def __init__(
        self,
        max_steps: int,
        num_devices: int = 1,
        flops_per_token: int | None = None,
        peak_flops: float | None = None,
    ) -> None:
        self._max_steps = max_steps
        self._num_devices = num_devices
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops
        self._recent_seconds: deque[float] = deque(maxlen=_WINDOW_STEPS)

    def stats(
        self,
        *,
        step: int,
        loss: float,
        grad_norm: float,
        lr: float,
        num_tokens: int,
        step_seconds: float,
        memory_bytes: int,
        tokens_seen: int,
        data_wait_seconds: float,
    ) -> StepStats:
        """The report of a step; arguments as in `StepStats`, and `num_tokens` are its label tokens over all ranks."""
        self._recent_seconds.append(step_seconds)
        per_step = sum(self._recent_seconds) / len(self._recent_seconds)
        rate = num_tokens / step_seconds if step_seconds > 0 else 0.0
        per_device = rate / self._num_devices
        utilisation = None
        if self._flops_per_token is not None and self._peak_flops is not None:
            utilisation = per_device * self._flops_per_token / self._peak_flops
        return StepStats(
            step=step,
            max_steps=self._max_steps,
            loss=loss,
            grad_norm=grad_norm,
            lr=lr,
            tokens_per_second=rate,
            step_seconds=step_seconds,
            memory_bytes=memory_bytes,
            tokens_seen=tokens_seen,
            data_wait_seconds=data_wait_seconds,
            tokens_per_second_per_device=per_device,
            mfu=utilisation,
            data_wait_share=data_wait_seconds / step_seconds if step_seconds > 0 else 0.0,
            seconds_left=per_step * (self._max_steps - step),
        )
