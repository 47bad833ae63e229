"""Which step trains, validates, saves; a pure function of the step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepScheduler:
    """When things happen. Steps are counted as done: step 1 is the state after the first update.

    Args:
        max_steps: Steps of the whole run.
        val_every_steps: Steps between validations; the last step is validated too. None: only the last.
        ckpt_every_steps: Steps between checkpoints; the last step is saved too. None: only the last.
    """

    max_steps: int
    val_every_steps: int | None = None
    ckpt_every_steps: int | None = None

    def is_last(self, step: int) -> bool:
        """Whether the run is complete after `step`."""
        return step >= self.max_steps

    def validates(self, step: int) -> bool:
        """Whether a validation follows `step`.

        >>> [step for step in range(1, 8) if StepScheduler(7, val_every_steps=3).validates(step)]
        [3, 6, 7]
        """
        return self.is_last(step) or (self.val_every_steps is not None and step % self.val_every_steps == 0)

    def saves(self, step: int) -> bool:
        """Whether a checkpoint follows `step`."""
        return self.is_last(step) or (self.ckpt_every_steps is not None and step % self.ckpt_every_steps == 0)
