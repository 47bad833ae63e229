"""When a run is saved, which checkpoint is its best, and what a save that fails means.

A save in the middle of a run may go on beside the training; at most one does. What it writes is a copy, and the
ranks talk to each other only before it begins and after it is over, so training and writing never meet. The last
save, and that of a stop, are waited for. `best_val_loss` is always the loss of the checkpoint that `BEST` names:
it moves when a save begins, and back when that save fails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from automodel_cli.engine.checkpoint.host_copy import HostCopy
from automodel_cli.engine.checkpoint.layout import step_directory_name
from automodel_cli.engine.checkpoint.save import Saving
from automodel_cli.engine.config.sections import CheckpointSection
from automodel_cli.engine.distributed.heartbeat import Phase, enter
from automodel_cli.engine.distributed.rank_group import SOLO, RankGroup
from automodel_cli.engine.train import saving
from automodel_cli.engine.train.background import Background
from automodel_cli.engine.train.state import TrainState
from automodel_cli.engine.train.step_scheduler import StepScheduler
from automodel_cli.errors import AmcliError, CheckpointError, PeerFailedError

# How long a rank that ends by an exception waits for its save: the ranks that it needs may be gone.
_PATIENCE_SECONDS = 20.0


@dataclass(frozen=True)
class _Begun:
    """A save that has begun, and what to go back to if it fails."""

    step: int
    is_best: bool
    saved_step_before: int
    best_before: float | None


class Saves:
    """The saves of one run.

    Args:
        root: Directory of its checkpoints.
        state: Of the run, as it advances; written as it is when a save begins.
        begin: Collects what this rank has to write, from all ranks; the flag says whether it is the best so far.
        section: Whether to save, what makes a step worth saving, and what a failure means.
        steps: Which steps are saved.
        say: Where messages go.
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
        self._judged: tuple[int, float] | None = None
        self._copy, self._writer = HostCopy(), Background()
        self._in_flight: _Begun | None = None
        self._has_waited = self._has_passed_a_best = False

    def __enter__(self) -> Saves:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Waits for a save in flight where the run ends by an error; all others have been settled."""
        begun = self._in_flight
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
    def wishes(self) -> tuple[int, int]:
        """What a rank tells the others at every step: whether its save in flight is over, and whether it failed."""
        return int(self._in_flight is not None and self._writer.is_over), int(self._writer.has_failed)

    def hear(self, num_over: int, num_failed: int) -> None:
        """Settles the save in flight once it is over on all ranks, or has failed on one.

        Args:
            num_over: Sum of the first wish over all ranks.
            num_failed: Of the second.

        Raises:
            CheckpointError: It failed, and the run must not go on.
            PeerFailedError: The same, on other ranks.
        """
        if num_failed > 0 or num_over == self._group.world_size:
            self._settle(raises=self._stops_unsaved)

    def judge(self, loss: float | None) -> None:
        """Takes the loss that decides about `BEST`, of the present step; None where it was not validated."""
        self._judged = None if loss is None else (self._state.step, loss)

    def if_due(self) -> None:
        """Saves the present step if it is one to save.

        Raises:
            CheckpointError: See `hear`.
            PeerFailedError: See `hear`.
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

    def on_request(self) -> None:
        """Saves the present step because somebody asked for it, unless it is saved already.

        Raises:
            CheckpointError: See `hear`.
            PeerFailedError: See `hear`.
        """
        if self._state.step == self._saved_step:
            self._say(f"asked to save: nothing is new since step {self._saved_step}")
        else:
            self._save(waits=False, raises=self._stops_unsaved)

    def at_the_end(self) -> None:
        """Returns once the present step is saved.

        Raises:
            CheckpointError: It is not.
            PeerFailedError: The same, on other ranks.
        """
        # Where it has failed, the present step, which is newer, is saved instead.
        self._settle(raises=False)
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
            self._judged is not None
            and self._judged[0] == self._state.step
            and (best is None or self._judged[1] < best)
        )

    def _save(self, *, waits: bool, raises: bool) -> None:
        """Begins to save the present step; `waits` for it, too, where no step or none without it may follow."""
        if not self._section.enabled:
            self._saved_step = self._state.step
            return
        enter(Phase.SAVING, self._state.step)
        if self._in_flight is not None:
            if not self._has_waited and not self._writer.is_over:
                self._has_waited = True
                self._say(
                    f"note: step {self._state.step} is to be saved while step {self._in_flight.step} is still being "
                    "written: training waits for it; saves are too close for this disk (said once)"
                )
            # Only now is it known which loss BEST has.
            self._settle(raises=self._stops_unsaved)
        begun = _Begun(self._state.step, self._is_best(), self._saved_step, self._state.best_val_loss)
        if begun.is_best and self._judged is not None:
            self._state.best_val_loss = self._judged[1]
        self._saved_step = begun.step
        try:
            if self._section.is_async and not waits:
                self._start(begun)
                return
            own = self._begin(begun.is_best)
            self._group.on_every_rank(lambda: saving.finish_saving(own))
        except (CheckpointError, PeerFailedError) as error:
            self._failed(begun, error, raises=raises)
        else:
            self._say(self._saved_message(begun))

    def _start(self, begun: _Begun) -> None:
        own = self._begin(begun.is_best)
        held = self._group.on_every_rank(lambda: own and replace(own, share=self._copy.of(own.share)))
        self._writer.start(f"save step {begun.step}", lambda: saving.finish_saving(held))
        self._in_flight = begun

    def _settle(self, *, raises: bool) -> None:
        """Waits for the save in flight, if there is one, on all ranks, and takes its outcome."""
        begun, self._in_flight = self._in_flight, None
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
        """Goes back to what was before, and on if the run may; of several ranks, all do the same."""
        self._saved_step, self._state.best_val_loss = begun.saved_step_before, begun.best_before
        if raises:
            raise error
        self._say(f"warning: step {begun.step} is NOT saved, and training goes on: {error}")

    def _saved_message(self, begun: _Begun) -> str:
        return f"saved {self._root / step_directory_name(begun.step)}" + (", the best so far" if begun.is_best else "")
