"""From a checkpoint to the live parts of a run: reads and verifies it, and applies what the user let change.

Where all ranks see the checkpoint, each reads its own parts. Elsewhere rank 0 reads; the others receive one tensor at
a time and keep their part of it. Either way a run continues on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from automodel_cli.engine.checkpoint.layout import later_steps
from automodel_cli.engine.checkpoint.load_checkpoint import load, load_newest_good
from automodel_cli.engine.checkpoint.read_tensors import LazyTensors
from automodel_cli.engine.checkpoint.snapshot import Snapshot
from automodel_cli.engine.config.emit import setting
from automodel_cli.engine.config.suggest import command, on_run
from automodel_cli.engine.distributed.parallel_model import ParallelModel
from automodel_cli.engine.distributed.rank_group import RankGroup
from automodel_cli.engine.optim.optimizer import load_optimizer_state
from automodel_cli.engine.train.continuation import Continuation
from automodel_cli.engine.train.resume_rules import allows_other_samples, drops_optimizer_state
from automodel_cli.errors import CheckpointError


@dataclass(frozen=True)
class OpenedCheckpoint:
    """A verified checkpoint, and whether its run is complete under the current configuration."""

    snapshot: Snapshot
    is_finished: bool


def open_checkpoint(plan: Continuation, say: Callable[[str], None], group: RankGroup) -> OpenedCheckpoint:
    """Reads the checkpoint of a plan, or the newest sound one of its run; reports those that were set aside.

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
        # The saved run went on in its own directory: services that collect metrics must see two runs.
        snapshot.train_state["run_id"] = ""
    return OpenedCheckpoint(snapshot, snapshot.step >= plan.settings.step_scheduler.max_steps)


def _starting_from(directory: Path) -> str:
    return command("pretrain", "-c", "FILE", "-c", directory, "--set", setting("checkpoint.init_from", str(directory)))


def broadcast_snapshot(group: RankGroup, snapshot: Snapshot | None) -> Snapshot:
    """Rank 0's snapshot on every rank; weights and optimizer state only if each rank can read them by itself.

    Args:
        group: The ranks.
        snapshot: None on all ranks but 0.
    """
    small = None
    if snapshot is not None:
        weights, state = (
            tensors if isinstance(tensors, LazyTensors) else {}
            for tensors in (snapshot.model_tensors, snapshot.optim_tensors)
        )
        small = replace(snapshot, model_tensors=weights, optim_tensors=state)
    received = group.broadcast(small)
    sources = [item for item in (received.model_tensors, received.optim_tensors) if isinstance(item, LazyTensors)]
    is_seen = group.all(all(source.can_be_read() for source in sources))
    if snapshot is not None:
        return replace(snapshot, is_seen_by_all=is_seen)
    return replace(received, is_seen_by_all=True) if is_seen else replace(received, model_tensors={}, optim_tensors={})


def load_optimizer(optimizer: torch.optim.Optimizer, model: ParallelModel, snapshot: Snapshot) -> None:
    """Restores the optimizer's state, sharded as the model is.

    Raises:
        CheckpointError: It belongs to another model or optimizer.
    """
    tensors = snapshot.optim_tensors
    if isinstance(tensors, LazyTensors) and snapshot.is_seen_by_all:
        tensors = model.read_state(tensors, tensors)
    else:
        tensors = model.own_state(tensors if model.group.rank == 0 else None)
    load_optimizer_state(optimizer, model.module, tensors)
