"""The exception tree of amcli, and the exit code that belongs to each branch.

Every error that a user can cause is an `AmcliError`; `app.py` is the one place that catches
it, prints it and exits. Anything else that reaches `app.py` is a defect of ours or an
exception of the user's own code, and exits with `ExitCode.INTERNAL`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit status of the `amcli` process; part of the public interface."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    DATA = 3
    CHECKPOINT = 4
    DIVERGED = 5
    INTERRUPTED = 6
    OUT_OF_MEMORY = 7
    HUNG = 8


class AmcliError(Exception):
    """An error with one clear message.

    Args:
        message: What was found and the rule that it breaks, with its numbers.
        where: The place the user must look at, such as `nanogpt.yaml:7:22` or a path.
        help: What would work; one sentence, no full stop needed.
        excerpt: The text at that place, with a caret below it.
        problems: Errors that this one lists, where several things are wrong at once.
    """

    exit_code: int = ExitCode.INTERNAL

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        help: str | None = None,
        excerpt: str | None = None,
        problems: Sequence[AmcliError] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.help = help
        self.excerpt = excerpt
        self.problems = tuple(problems)

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.message}" if self.where else self.message]
        if self.excerpt:
            lines.append(self.excerpt)
        lines += map(str, self.problems)
        if self.help:
            lines.append(f"  help: {self.help}")
        return "\n".join(lines)


class UsageError(AmcliError):
    """The command line itself is wrong: an unknown option, a missing argument."""

    exit_code = ExitCode.USAGE


class ConfigError(AmcliError):
    """A configuration value is wrong, missing or unknown, or its `_target_` cannot be built."""

    exit_code = ExitCode.USAGE


class DataError(AmcliError):
    """Token shards or source texts are missing, damaged or do not fit the model."""

    exit_code = ExitCode.DATA


class CheckpointError(AmcliError):
    """A checkpoint is missing, incomplete, damaged or in the way."""

    exit_code = ExitCode.CHECKPOINT


class TrainingDivergedError(AmcliError):
    """The loss or the gradient norm is not finite."""

    exit_code = ExitCode.DIVERGED


class InterruptedTrainingError(AmcliError):
    """A signal stopped the run after its checkpoint was saved."""

    exit_code = ExitCode.INTERRUPTED


class OutOfMemoryError(AmcliError):
    """The device, or the host, has no memory left for the run."""

    exit_code = ExitCode.OUT_OF_MEMORY


class PeerFailedError(AmcliError):
    """Another rank failed, and says why; this one only stops with it."""


class RankFailedError(AmcliError):
    """A rank of the run failed; the exit code is that of its own failure.

    Args:
        message: Which rank, where, and what it said.
        exit_code: What that rank would have ended with alone.
        help: What would work.
    """

    def __init__(self, message: str, *, exit_code: int, help: str | None = None) -> None:
        super().__init__(message, help=help)
        self.exit_code = exit_code
