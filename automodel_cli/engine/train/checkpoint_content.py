"""From the live parts of a run to the content of a checkpoint, and back.

To save, each rank gathers what it writes; only here do the ranks send messages. Writing and publishing
(`checkpoint/save.py`) come after, and the ranks then see each other's files only.

To restore, each rank reads its own parts where all ranks see the checkpoint. Elsewhere rank 0 reads; the others receive
one tensor at a time and keep their part of it. Either way a run continues on any number of ranks. The checkpoint is
verified first, and what the user let change is applied.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from automodel_cli import __version__
from automodel_cli.engine.checkpoint import layout
from automodel_cli.engine.checkpoint.layout import later_steps
from automodel_cli.engine.checkpoint.load_checkpoint import load, load_newest_good
from automodel_cli.engine.checkpoint.rank_files import RankFiles, TensorFile, files_of_parts, texts_of, whole_checkpoint
from automodel_cli.engine.checkpoint.read_tensors import LazyTensors
from automodel_cli.engine.checkpoint.save import Publication, Saving, begin
from automodel_cli.engine.checkpoint.snapshot import Snapshot, TrainState
from automodel_cli.engine.config.emit import setting
from automodel_cli.engine.config.sections import CheckpointSection
from automodel_cli.engine.config.suggest import command, on_run
from automodel_cli.engine.distributed.parallel_model import ParallelModel
from automodel_cli.engine.distributed.rank_group import RankGroup
from automodel_cli.engine.models.export import export_model, export_parts, model_config
from automodel_cli.engine.observe.code_version import code_version
from automodel_cli.engine.optim.optimizer import load_optimizer_state, optimizer_state_tensors
from automodel_cli.engine.train.continuation import Continuation
from automodel_cli.engine.train.device import Placement
from automodel_cli.engine.train.generators import rng_tensors
from automodel_cli.engine.train.resume_rules import allows_other_samples, drops_optimizer_state
from automodel_cli.errors import CheckpointError


@dataclass(frozen=True)
class LiveParts:
    """The live parts of a run that a checkpoint is made of.

    Args:
        state: Progress, written as it is.
        model: Written under Hugging Face names.
        optimizer: Its state is written under the names of the model's parameters.
        config_yaml: The run's configuration as text.
    """

    state: TrainState
    model: ParallelModel
    optimizer: torch.optim.Optimizer
    config_yaml: str

    def snapshot(self, **tensors: Any) -> Snapshot:
        """The snapshot with these tensors, and everything that is no tensor."""
        return Snapshot(
            step=self.state.step,
            config_yaml=self.config_yaml,
            model_config=model_config(self.model.module, self.bos_id),
            train_state=self.state.to_dict(),
            **tensors,
        )

    @property
    def bos_id(self) -> int | None:
        """BOS token of the data's tokenizer."""
        return self.state.tokenizer["bos_id"] if self.state.tokenizer else None


def begin_saving(
    root: Path,
    parts: LiveParts,
    section: CheckpointSection,
    *,
    lr: float,
    placement: Placement,
    is_best: bool,
    is_last: bool,
) -> Saving | None:
    """What this rank has to write for a checkpoint of the present step. Collective: every rank must call this.

    The tensors may be the live ones: they stay unchanged until the next step.

    Args:
        root: Directory of the run's checkpoints.
        parts: The live parts of the run.
        section: What is written whole, and which checkpoints stay.
        lr: Learning rate of the last step; shown by `inspect-ckpt`.
        placement: Device and types; shown by `inspect-ckpt`.
        is_best: Whether `BEST` moves too.
        is_last: Whether the run is complete with this step.

    Returns:
        None on a rank that writes nothing.

    Raises:
        CheckpointError: There is no room for it.
        PeerFailedError: The same, on other ranks than 0.
    """
    model, group, step = parts.model, parts.model.group, parts.state.step
    publication = Publication(
        facts=_facts(parts.state, lr, placement, group),
        is_best=is_best,
        max_recent=section.max_recent_checkpoints,
        keep_every=section.keep_every_steps,
    )
    state_tensors, own = optimizer_state_tensors(parts.optimizer, model.module), model.own_tensors()
    # `numel` counts the elements of the whole tensor, on every rank.
    num_bytes = sum(item.numel() * item.element_size() for item in (*own.values(), *state_tensors.values()))
    partial = group.broadcast(group.on_first_rank(lambda: begin(root, step, num_bytes)))
    if not model.is_sharded or section.save_consolidated == "every":
        whole = model.whole_model(), model.whole_state(state_tensors), group.gather(rng_tensors())
        if group.rank > 0:
            return None
        rank_files = _gathered_files(parts, _model_file(section), *whole)
        return Saving(root, step, partial, rank_files, publication)
    is_consolidated = is_last and section.save_consolidated == "final"
    model_file = _model_file(section) if is_consolidated or section.model_save_format == "torch_save" else None
    rank_files = _own_files(parts, state_tensors, model_file)
    is_first = group.rank == 0
    return Saving(
        root, step, partial, rank_files, publication if is_first else None, rank=group.rank, writers=group.world_size
    )


def _model_file(section: CheckpointSection) -> str:
    return layout.PICKLED_MODEL_FILE if section.model_save_format == "torch_save" else layout.MODEL_FILE


def _gathered_files(
    parts: LiveParts,
    model_file: str,
    model_tensors: dict[str, torch.Tensor],
    optim_tensors: dict[str, torch.Tensor],
    generators: list[dict[str, torch.Tensor]] | None,
) -> RankFiles:
    """The whole content, which rank 0 writes."""
    own, *others = generators or [rng_tensors()]
    exported = export_model(parts.model.module, parts.bos_id, model_tensors)
    return whole_checkpoint(
        parts.snapshot(
            model_tensors=exported.tensors,
            optim_tensors=optim_tensors,
            rng_tensors=own,
            peer_rng_tensors=tuple(others),
        ),
        model_file,
    )


def _own_files(parts: LiveParts, state_tensors: dict[str, torch.Tensor], model_file: str | None) -> RankFiles:
    """This rank's part of the content; with a `model_file`, rank 0 writes the whole weights instead of parts."""
    model, rank = parts.model, parts.model.group.rank
    generators = rng_tensors()
    files = [
        *files_of_parts(layout.OPTIMIZER_FILE, rank, model.parts(state_tensors, are_state=True)),
        TensorFile(layout.rng_file(rank), generators),
    ]
    if model_file is not None:
        gathered = model.whole_model()
        if rank == 0:
            files.append(TensorFile(model_file, export_model(model.module, parts.bos_id, gathered).tensors))
    else:
        own = export_parts(model.module, model.parts(model.own_tensors()), is_first=rank == 0)
        files += files_of_parts(layout.MODEL_FILE, rank, own)
    snapshot = parts.snapshot(model_tensors={}, optim_tensors={}, rng_tensors=generators)
    return RankFiles(texts_of(snapshot) if rank == 0 else {}, tuple(files))


def _facts(state: TrainState, lr: float, placement: Placement, group: RankGroup) -> dict[str, Any]:
    layout_facts = {} if group.is_alone else {"ranks": group.world_size, **asdict(group.degrees)}
    return {
        **layout_facts,
        "loss": state.loss,
        "val_loss": state.val_loss,
        "tokens_seen": state.tokens_seen,
        "samples_consumed": state.samples_consumed,
        "lr": lr,
        "train_seconds": round(state.train_seconds, 3),
        "device": placement.name,
        "precision": placement.precision,
        "tokenizer": state.tokenizer,
        "git": code_version(Path.cwd()),
        "versions": {"amcli": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


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
