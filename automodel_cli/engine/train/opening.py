"""The checkpoint that a run goes on from: read, verified, and brought to what the user let change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from automodel_cli.engine.checkpoint.layout import later_steps
from automodel_cli.engine.checkpoint.load import load, load_newest_good
from automodel_cli.engine.checkpoint.snapshot import Snapshot
from automodel_cli.engine.config.emit import setting
from automodel_cli.engine.config.suggest import command, on_run
from automodel_cli.engine.distributed.rank_group import RankGroup
from automodel_cli.engine.train.continuation import Continuation
from automodel_cli.engine.train.restoring import broadcast_snapshot
from automodel_cli.engine.train.resume_rules import allows_other_samples, drops_optimizer_state
from automodel_cli.errors import CheckpointError


@dataclass(frozen=True)
class OpenedCheckpoint:
    """A verified checkpoint, and whether its run is complete under the present configuration."""

    snapshot: Snapshot
    is_finished: bool


def open_checkpoint(plan: Continuation, say: Callable[[str], None], group: RankGroup) -> OpenedCheckpoint:
    """Reads the checkpoint of a plan, or the newest sound one of its run; says what was set aside.

    Collective: rank 0 reads; on ranks that do not see the files the snapshot has no weights and no optimizer state.

    Raises:
        CheckpointError: The named checkpoint, or every one, is broken, or the run went on after it.
    """
    opened = group.on_first_rank(lambda: _opened(plan, say))
    snapshot = broadcast_snapshot(group, opened.snapshot if opened else None)
    return OpenedCheckpoint(snapshot, snapshot.step >= plan.settings.step_scheduler.max_steps)


def _opened(plan: Continuation, say: Callable[[str], None]) -> OpenedCheckpoint:
    if plan.named:
        snapshot, directory = load(plan.directory), plan.directory
    else:
        snapshot, directory, notes = load_newest_good(plan.directory.parent)
        for note in notes:
            say(note)
    later = later_steps(plan.root, snapshot.step)
    if later:
        raise CheckpointError(
            f"the run went on after step {snapshot.step}, up to {later[-1].name}, and would be overwritten",
            where=str(plan.root),
            help=f"`{on_run('resume', plan.root)}` continues it after the newest;\n"
            "        --set checkpoint.checkpoint_dir=DIR continues this one in another directory",
        )
    say(f"resuming after step {snapshot.step} from {directory}")
    if snapshot.is_weights_only:
        raise CheckpointError(
            "it holds weights only, and nothing that a run could go on from",
            where=str(directory),
            help=f"start a new run with them: {_starting_from(directory)}",
        )
    if drops_optimizer_state(plan.changes):
        snapshot.optim_tensors = {}
    if allows_other_samples(plan.consented):
        snapshot.train_state["order_key"] = ""
    if plan.root.resolve() != directory.parent.resolve() and later_steps(directory.parent, snapshot.step):
        # That run went on where it was: services that collect metrics must not take the two for one.
        snapshot.train_state["run_id"] = ""
    return OpenedCheckpoint(snapshot, snapshot.step >= plan.settings.step_scheduler.max_steps)


def _starting_from(directory: Path) -> str:
    return command("pretrain", "-c", "FILE", "-c", directory, "--set", setting("checkpoint.init_from", str(directory)))
