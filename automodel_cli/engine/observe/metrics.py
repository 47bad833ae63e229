"""What a run reports about itself, what a sink of such reports offers, and a sink that passes reports on to several.

The sender does not know the sinks; each sink decides alone what it shows or keeps.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
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
            None where the model or the device does not say.
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
        val_bits_per_byte: Loss in bits per byte of text, which does not depend on the tokenizer; None where the
            bytes were not counted, and for several sets together.
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


def _warn_on_stderr(text: str) -> None:
    sys.stderr.write(f"warning: {text}\n")


class Fanout:
    """A sink made of sinks.

    An exception of one never reaches the caller or the others: it is warned about once, later
    reports are still offered (a disk may have room again), and `close` says how many are missing.

    Args:
        sinks: Called in this order.
        warn: Takes the text of a warning.
    """

    def __init__(self, sinks: Sequence[Sink], warn: Callable[[str], None] = _warn_on_stderr) -> None:
        self._sinks = list(sinks)
        self._warn = warn
        self._num_missing = [0] * len(self._sinks)
        self._has_warned = [False] * len(self._sinks)

    @property
    def name(self) -> str:
        """What it is called in a message."""
        return ", ".join(sink.name for sink in self._sinks)

    @property
    def num_gone(self) -> int:
        """Reports that were lost later."""
        return sum(sink.num_gone for sink in self._sinks)

    def on_start(self, facts: dict[str, Any]) -> None:
        """Passes it on."""
        self._each(lambda sink: sink.on_start(facts))

    def on_step(self, stats: StepStats) -> None:
        """Passes it on."""
        self._each(lambda sink: sink.on_step(stats))

    def on_validation(self, stats: ValStats) -> None:
        """Passes it on."""
        self._each(lambda sink: sink.on_validation(stats))

    def on_message(self, text: str) -> None:
        """Passes it on."""
        self._each(lambda sink: sink.on_message(text))

    def close(self) -> None:
        """Closes all, and says what is missing."""
        self._each(lambda sink: sink.close(), is_report=False)
        for sink, num_missing in zip(self._sinks, self._num_missing, strict=True):
            if num_missing:
                self._warn(f"{sink.name} lacks {num_missing:,} {_reports(num_missing)} that could not be written")
            if sink.num_gone:
                self._warn(f"{sink.name} was removed, and {sink.num_gone:,} {_reports(sink.num_gone)} went with it")

    def _each(self, send: Callable[[Sink], None], *, is_report: bool = True) -> None:
        for index, sink in enumerate(self._sinks):
            try:
                send(sink)
            except Exception as error:  # whatever it is, the training matters more
                self._num_missing[index] += is_report
                if not self._has_warned[index]:
                    self._has_warned[index] = True
                    self._warn(
                        f"{sink.name} cannot be written ({type(error).__name__}: {error}); training goes on, "
                        "and every later report is tried"
                    )


def _reports(count: int) -> str:
    return "report" if count == 1 else "reports"
