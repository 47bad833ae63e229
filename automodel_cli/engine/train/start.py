"""How a run starts: as a new one, or from which checkpoint. Torch-free until it trains.

| asked for | in `checkpoint_dir` | what starts |
|---|---|---|
| `pretrain` | no checkpoint | a new run |
| `pretrain` | a checkpoint | refused; with `--overwrite` a new run, and the old one is deleted |
| `pretrain --resume auto`, or ranks started again after a failure | a checkpoint | that run continues |
| `checkpoint.restore_from`, if the row above does not apply | see `plan_restore` | that checkpoint continues here |
| `resume` | a checkpoint | that run continues |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from automodel_cli.engine.config.check_targets import check_for_certain
from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.settings import Settings
from automodel_cli.engine.config.trust import remember_code
from automodel_cli.engine.distributed.environment import RankPlace
from automodel_cli.engine.observe.metrics import Fanout
from automodel_cli.engine.train.continuation import Continuation, plan_restore, plan_resume
from automodel_cli.engine.train.preflight import (
    check_new_run,
    ensure_embedded_corpus,
    new_run,
    on_ranks,
    owned,
    run_begun,
)
from automodel_cli.errors import UsageError

if TYPE_CHECKING:
    from automodel_cli.engine.checkpoint.snapshot import Snapshot
    from automodel_cli.engine.train.recipe import RunSummary

Say = Callable[[str], None]


@dataclass(frozen=True)
class NewRun:
    """A run from step 0; `overwrite` deletes the checkpoints that are in its directory."""

    config: Config
    settings: Settings
    root: Path
    overwrite: bool = False

    @property
    def deletes(self) -> bool:
        """Whether there are checkpoints to delete."""
        return self.overwrite and run_begun(self.settings.checkpoint)


Start = NewRun | Continuation


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and whether it was complete before, so that nothing was trained."""

    summary: RunSummary
    was_complete: bool = False


def start_of(
    config: Config,
    settings: Settings,
    config_paths: Sequence[Path] | None,
    overrides: Sequence[str] = (),
    unset: Sequence[str] = (),
    consented: Sequence[str] = (),
    *,
    trust: bool = False,
    overwrite: bool = False,
    continues: bool = False,
    say: Say,
) -> Start:
    """Decides how `pretrain` starts; takes the arguments of `plan_restore` and `plan_resume`, and three more.

    `overwrite` deletes the run that is in the directory, `continues` continues it, if there is one. `say` is called
    with a line if there is nothing to restore yet.

    Raises:
        UsageError: The options contradict `checkpoint.restore_from`.
        CheckpointError: There is no such checkpoint, or something changed that needs consent.
    """
    restores = settings.checkpoint.restore_from is not None
    if restores and overwrite:
        raise UsageError("checkpoint.restore_from goes on with a run, and --overwrite deletes one: give one of them")
    if consented and not restores:
        raise UsageError(
            "--override-resume is about the run that checkpoint.restore_from continues, and that is not set",
            help="`amcli resume` takes it, too",
        )
    root = Path(settings.checkpoint.checkpoint_dir)
    if continues and run_begun(settings.checkpoint):
        return plan_resume(root, config_paths, overrides, unset, trust=trust)
    if restores:
        restored = plan_restore(config, settings, consented, trust=trust)
        if restored is not None:
            return restored
        say(f"checkpoint.restore_from is LATEST, and {root} holds no checkpoint: a new run")
    return NewRun(config, settings, root, overwrite)


def prepare(start: Start, place: RankPlace, say: Say) -> None:
    """Does what is done once for all ranks of a machine: checks by importing, and notes the code that will run.

    Raises:
        ConfigError: A target cannot be imported or called, or does not take its keywords.
    """
    if place.is_ours:  # the launcher has done it
        return
    if start.settings.unchecked:
        check_for_certain(start.config, start.settings.unchecked)
    if place.speaks and (problem := remember_code(start.config, start.root)):
        say(f"note: {problem}")


def prepare_launch(start: Start, say: Say) -> None:
    """Refuses or prepares, before any rank is started, what rank 0 of a new run would.

    Raises:
        CheckpointError: The directory holds another run, and `overwrite` is not given.
    """
    if isinstance(start, NewRun):
        check_new_run(start.settings.checkpoint, overwrite=start.overwrite)
        ensure_embedded_corpus(start.config, say)


def train(start: Start, place: RankPlace, stop_at: float | None, say: Say, *, quiet: bool) -> Outcome:
    """Trains, alone or among other ranks.

    Args:
        start: What to train.
        place: This process among the ranks.
        stop_at: Moment of `time.monotonic()` to save and stop at; None for no limit.
        say: Called with each note.
        quiet: Show no progress.

    Raises:
        AmcliError: See `recipe.pretrain`.
    """
    config, settings, root = start.config, start.settings, start.root
    with on_ranks(place, settings, root, lambda: _directory(start, say)) as group:
        from automodel_cli.engine.observe.run_sinks import run_sink
        from automodel_cli.engine.train import recipe

        snapshot = None
        if isinstance(start, Continuation):
            from automodel_cli.engine.train.checkpoint_content import open_checkpoint

            resumed = open_checkpoint(start, say, group)
            snapshot = resumed.snapshot
            if resumed.is_finished:
                return Outcome(_summary_of(snapshot, root), was_complete=True)
            if start.changes and (change := start.schedule_change(snapshot.step)) is not None:
                say(f"changed  {change}")
        begin = 0 if snapshot is None else snapshot.step
        sink = run_sink(config, settings, root, start_step=begin, quiet=quiet) if place.speaks else _no_sink
        return Outcome(recipe.pretrain(config, settings, root, sink, group, stop_at, snapshot))


@contextmanager
def _directory(start: Start, say: Say) -> Iterator[None]:
    """Owns the run's directory; of a new run, with everything ready in it."""
    if isinstance(start, Continuation):
        with owned(start.settings.checkpoint, start.root):
            yield
        return
    with new_run(start.settings.checkpoint, overwrite=start.overwrite):
        ensure_embedded_corpus(start.config, say)
        yield


def _no_sink() -> AbstractContextManager[Fanout]:
    return nullcontext(Fanout([]))


def _summary_of(snapshot: Snapshot, root: Path) -> RunSummary:
    """The summary of a run that is complete: nothing is trained, so nothing takes time."""
    from automodel_cli.engine.checkpoint.snapshot import TrainState
    from automodel_cli.engine.train.recipe import RunSummary

    state = TrainState.from_dict(snapshot.train_state)
    return RunSummary(
        step=state.step,
        loss=state.loss,
        val_loss=state.val_loss,
        unigram_entropy_nats=None,
        tokens_seen=state.tokens_seen,
        tokens_per_second=0.0,
        seconds=0.0,
        checkpoint=root / "LATEST",
    )
