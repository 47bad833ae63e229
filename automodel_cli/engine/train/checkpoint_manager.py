"""When a run is saved, which checkpoint is its best, and what follows if saving fails.

A save in the middle of a run may be written in the background while training goes on; at most one is. It writes a copy,
and the ranks send messages only before it begins and after it is over, so training and writing never meet. The last
save, and the save of a stop, are waited for. `best_val_loss` is always the loss of the checkpoint that `BEST` names:
it changes when a save begins, and back if that save fails.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from automodel_cli.engine.checkpoint.layout import step_directory_name
from automodel_cli.engine.checkpoint.rank_files import HostCopy
from automodel_cli.engine.checkpoint.save import Saving, finish
from automodel_cli.engine.checkpoint.snapshot import TrainState
from automodel_cli.engine.config.sections import CheckpointSection
from automodel_cli.engine.distributed.heartbeat import Phase, enter
from automodel_cli.engine.distributed.rank_group import SOLO, RankGroup
from automodel_cli.engine.train.step_scheduler import StepScheduler
from automodel_cli.errors import AmcliError, CheckpointError, PeerFailedError

# Time that a rank waits for its save after an exception: other ranks, which the save needs, may be gone.
_PATIENCE_SECONDS = 20.0


@dataclass(frozen=True)
class _Begun:
    """A save that has begun, and what is restored if it fails."""

    step: int
    is_best: bool
    saved_step_before: int
    best_before: float | None


class CheckpointManager:
    """Decides about the saves of one run.

    Args:
        root: Directory of the checkpoints.
        state: Progress of the run; written as it is when a save begins.
        begin: Returns what this rank has to write (collective); its argument is whether the step is the best so far.
        section: Whether to save, when, and what follows from a failure.
        steps: Which steps are saved.
        say: Called with messages for the user.
        group: The ranks of the run.
    """

    def __init__(
        self,
        root: Path,
        state: TrainState,
        begin: Callable[[bool], Saving | None],
        section: CheckpointSection,
        steps: StepScheduler,
        say: Callable[[str], None],
        group: RankGroup = SOLO,
    ) -> None:
        self._root, self._state, self._begin, self._section = root, state, begin, section
        self._steps, self._say, self._group = steps, say, group
        self._saved_step = state.step
        self._validated: tuple[int, float] | None = None
        self._copy, self._writer = HostCopy(), Background()
        self._background: _Begun | None = None
        self._has_waited = self._has_passed_a_best = False

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Waits for an unfinished save if the run ends by an error; otherwise none is left."""
        begun = self._background
        if begun is None:
            return
        # Errors of amcli are known to all ranks; after any other, a rank that a save waits for may be gone.
        is_known = self._group.world_size == 1 or isinstance(error, AmcliError)
        message = f"step {begun.step} is NOT saved: it was still being written"
        if self._writer.wait(None if is_known else _PATIENCE_SECONDS):
            try:
                self._writer.result()
                message = self._saved_message(begun)
            except Exception as failure:  # the error that ends the run is the one to be raised
                message = f"step {begun.step} is NOT saved: {failure}"
        self._say(message)

    @property
    def status(self) -> tuple[int, int]:
        """Whether this rank's background save is over, and whether it failed; summed over all ranks in every step."""
        return int(self._background is not None and self._writer.is_over), int(self._writer.has_failed)

    def update(self, num_over: int, num_failed: int) -> None:
        """Concludes the background save once it is over on all ranks, or has failed on one.

        Args:
            num_over: Number of ranks on which it is over.
            num_failed: Number of ranks on which it has failed.

        Raises:
            CheckpointError: It failed, and the run must not go on.
            PeerFailedError: The same, on other ranks.
        """
        if num_failed > 0 or num_over == self._group.world_size:
            self._conclude(raises=self._stops_unsaved)

    def set_val_loss(self, loss: float | None) -> None:
        """Sets the loss of the present step by which `BEST` is chosen; None if the step was not validated."""
        self._validated = None if loss is None else (self._state.step, loss)

    def save_if_due(self) -> None:
        """Saves the present step if it is one to save.

        Raises:
            CheckpointError: See `update`.
            PeerFailedError: See `update`.
        """
        step, is_best = self._state.step, self._is_best()
        if self._steps.saves(step) or (is_best and self._section.save_best):
            is_last = self._steps.is_last(step)
            self._save(waits=is_last, raises=is_last or self._stops_unsaved)
        elif is_best and self._section.enabled and not self._has_passed_a_best:
            self._has_passed_a_best = True
            self._say(
                f"note: step {step} is the best so far and is not saved, so BEST cannot name it; "
                "checkpoint.save_best=true saves such steps (said once)"
            )

    def save_on_request(self) -> None:
        """Saves the present step on request, unless it is saved already.

        Raises:
            CheckpointError: See `update`.
            PeerFailedError: See `update`.
        """
        if self._state.step == self._saved_step:
            self._say(f"asked to save: nothing is new since step {self._saved_step}")
        else:
            self._save(waits=False, raises=self._stops_unsaved)

    def finish(self) -> None:
        """Returns once the present step is saved.

        Raises:
            CheckpointError: It is not.
            PeerFailedError: The same, on other ranks.
        """
        # If it has failed, the present step, which is newer, is saved instead.
        self._conclude(raises=False)
        if self._state.step != self._saved_step:
            self._save(waits=True, raises=True)

    @property
    def _stops_unsaved(self) -> bool:
        """Whether a save that fails before the end ends the run."""
        return self._section.on_save_error != "warn"

    def _is_best(self) -> bool:
        """Whether the present step was validated, with a loss below that of `BEST`."""
        best = self._state.best_val_loss
        return (
            self._validated is not None
            and self._validated[0] == self._state.step
            and (best is None or self._validated[1] < best)
        )

    def _save(self, *, waits: bool, raises: bool) -> None:
        """Saves the present step; in the background, if the configuration wants that and `waits` is false."""
        if not self._section.enabled:
            self._saved_step = self._state.step
            return
        enter(Phase.SAVING, self._state.step)
        if self._background is not None:
            if not self._has_waited and not self._writer.is_over:
                self._has_waited = True
                self._say(
                    f"note: step {self._state.step} is to be saved while step {self._background.step} is still being "
                    "written: training waits for it; saves are too close for this disk (said once)"
                )
            # Only now it is known which loss BEST has.
            self._conclude(raises=self._stops_unsaved)
        begun = _Begun(self._state.step, self._is_best(), self._saved_step, self._state.best_val_loss)
        if begun.is_best and self._validated is not None:
            self._state.best_val_loss = self._validated[1]
        self._saved_step = begun.step
        try:
            if self._section.is_async and not waits:
                self._start(begun)
                return
            own = self._begin(begun.is_best)
            self._group.on_every_rank(lambda: _write(own))
        except (CheckpointError, PeerFailedError) as error:
            self._failed(begun, error, raises=raises)
        else:
            self._say(self._saved_message(begun))

    def _start(self, begun: _Begun) -> None:
        own = self._begin(begun.is_best)
        held = self._group.on_every_rank(lambda: own and replace(own, rank_files=self._copy.of(own.rank_files)))
        self._writer.start(f"save step {begun.step}", lambda: _write(held))
        self._background = begun

    def _conclude(self, *, raises: bool) -> None:
        """Waits for the background save, if there is one, on all ranks, and handles its outcome."""
        begun, self._background = self._background, None
        if begun is None:
            return
        enter(Phase.SAVING, begun.step)
        try:
            self._group.on_every_rank(self._writer.result)
        except (CheckpointError, PeerFailedError) as error:
            self._failed(begun, error, raises=raises)
        else:
            self._say(self._saved_message(begun))

    def _failed(self, begun: _Begun, error: AmcliError, *, raises: bool) -> None:
        """Restores the state before the save, and lets the run go on if it may; the same on all ranks."""
        self._saved_step, self._state.best_val_loss = begun.saved_step_before, begun.best_before
        if raises:
            raise error
        self._say(f"warning: step {begun.step} is NOT saved, and training goes on: {error}")

    def _saved_message(self, begun: _Begun) -> str:
        return f"saved {self._root / step_directory_name(begun.step)}" + (", the best so far" if begun.is_best else "")


def _write(saving: Saving | None) -> None:
    """Writes what this rank has to write, and on rank 0 publishes the checkpoint; sends no messages."""
    if saving is not None:
        finish(saving)


class Background:
    """Does one piece of work at a time; asking for its result waits for it.

    The thread is a daemon: if it waits for a dead rank, it must not keep the process alive.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    @property
    def is_over(self) -> bool:
        """Whether no work is under way."""
        return self._thread is None or not self._thread.is_alive()

    @property
    def has_failed(self) -> bool:
        """Whether the work is over and has failed."""
        return self.is_over and self._failure is not None

    def start(self, name: str, work: Callable[[], object]) -> None:
        """Begins some work when the work before it is over; an error of that, if not asked for, is dropped."""

        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._failure = error

        self.wait()
        self._failure = None
        self._thread = threading.Thread(target=run, name=name, daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> bool:
        """Waits for the work, at most `seconds`; returns whether it is over."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self.is_over

    def result(self) -> None:
        """Waits for the work, and raises its error, once."""
        self.wait()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
