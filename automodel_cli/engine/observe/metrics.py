"""What a run reports about itself, and what a sink of such reports must offer.

Who sends is told nothing about who listens; a sink decides alone what it shows or keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol


@dataclass(frozen=True)
class ReportedNumber:
    """A number of a step that a model or a loss reports (`engine.protocols.Metric`)."""

    name: str
    value: float
    unit: str = ""


@dataclass(frozen=True)
class StepStats:
    """One optimisation step.

    Args:
        step: Steps done, this one included.
        max_steps: The last step of the run.
        loss: Training loss in nats per token, before this step's update.
        grad_norm: Norm of the whole gradient before clipping.
        lr: Learning rate that this step used.
        tokens_per_second: Label tokens over `step_seconds`, all ranks together.
        step_seconds: Time of the step, waiting for data included; validation and saving are not.
        memory_bytes: Peak memory of the device, or of the process on a CPU.
        tokens_seen: Label tokens since the start of training, all ranks together.
        data_wait_seconds: The part of `step_seconds` in which the loader was waited for.
        tokens_per_second_per_device: `tokens_per_second` over the number of devices.
        mfu: Model FLOPs utilisation, in [0, 1]: FLOPs of the formula 6N + 12LCT over what the devices could do;
            None where model or device do not tell.
        data_wait_share: `data_wait_seconds` over `step_seconds`.
        seconds_left: Training time to the last step at the mean of the last 50 steps; validation and saving come
            on top.
        reported: What the model and the loss report.
    """

    step: int
    max_steps: int
    loss: float
    grad_norm: float
    lr: float
    tokens_per_second: float
    step_seconds: float
    memory_bytes: int
    tokens_seen: int
    data_wait_seconds: float
    tokens_per_second_per_device: float = 0.0
    mfu: float | None = None
    data_wait_share: float = 0.0
    seconds_left: float = 0.0
    reported: Sequence[ReportedNumber] = ()

    def flat(self) -> dict[str, Any]:
        """All numbers by name."""
        own = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "reported"}
        return own | {number.name: number.value for number in self.reported}


@dataclass(frozen=True)
class SetStats:
    """One of several validation sets; arguments as in `ValStats`."""

    val_loss: float
    val_perplexity: float
    num_tokens: int
    val_bits_per_byte: float | None = None


@dataclass(frozen=True)
class ValStats:
    """One pass over the validation sets.

    Args:
        step: Steps done before it.
        val_loss: Loss in nats per token, averaged over tokens; of several sets, the mean of their losses.
        val_perplexity: exp(val_loss).
        num_tokens: Label tokens that were averaged over.
        val_bits_per_byte: Loss in bits per byte of text, which does not depend on the tokenizer; None where nobody
            counted the bytes, and for several sets together.
        sets: Each of several sets by its name; empty for one that stands alone.
    """

    step: int
    val_loss: float
    val_perplexity: float
    num_tokens: int
    val_bits_per_byte: float | None = None
    sets: Mapping[str, SetStats] = field(default_factory=dict)

    def flat(self) -> dict[str, Any]:
        """All numbers by name, those of a set as `val_loss/<name>`."""
        own = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "sets"}
        return own | {f"{key}/{name}": value for name, found in self.sets.items() for key, value in vars(found).items()}


# Names that no other number may have, since sinks show all of them side by side.
STEP_NAMES = frozenset({"event", "time", *(item.name for kind in (StepStats, ValStats) for item in fields(kind))})


def scalars(report: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a report that make a curve over the steps; the step itself and what never changes are none.

    >>> scalars({"step": 3, "max_steps": 9, "loss": 2.5, "mfu": None})
    {'loss': 2.5}
    """
    return {
        name: value
        for name, value in report.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in ("step", "max_steps")
    }


class Sink(Protocol):
    """A place that reports go to: a terminal, a file, a service."""

    @property
    def name(self) -> str:
        """What it is called in a message."""

    @property
    def num_gone(self) -> int:
        """Reports that were taken and are lost all the same, as with a file that was removed."""

    def on_start(self, facts: dict[str, Any]) -> None:
        """A run begins or continues; `facts` are JSON-able."""

    def on_step(self, stats: StepStats) -> None:
        """An optimisation step is done."""

    def on_validation(self, stats: ValStats) -> None:
        """A validation is done."""

    def on_message(self, text: str) -> None:
        """Something worth one line happened, such as a saved checkpoint."""

    def close(self) -> None:
        """The run is over; nothing is sent after this."""
