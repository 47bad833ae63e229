"""From the live parts of a run to a checkpoint on disk."""

from __future__ import annotations

import platform
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from automodel_cli import __version__
from automodel_cli.engine.checkpoint import layout
from automodel_cli.engine.checkpoint.save import save
from automodel_cli.engine.checkpoint.snapshot import Snapshot
from automodel_cli.engine.models.export import export_model
from automodel_cli.engine.observe.code_version import code_version
from automodel_cli.engine.optim.state import optimizer_state_tensors
from automodel_cli.engine.train.device import Placement
from automodel_cli.engine.train.state import TrainState, rng_tensors

if TYPE_CHECKING:
    from automodel_cli.engine.distributed.spread import Spread


def save_run(
    root: Path,
    state: TrainState,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    config_yaml: str,
    lr: float,
    placement: Placement,
    is_best: bool,
    max_recent: int | None,
    keep_every: int | None,
    spread: Spread | None = None,
) -> Path:
    """Saves everything that a resumed run needs, and returns the checkpoint's directory.

    Of several ranks all must call it: rank 0 gathers the whole tensors, one by one, and writes them.

    Args:
        root: Directory of the run's checkpoints.
        state: Progress, written as it is.
        model: Written under Hugging Face names.
        optimizer: Its state is written under the names of the model's parameters.
        config_yaml: The run's configuration as text.
        lr: Learning rate of the last step; shown by `inspect-ckpt`.
        placement: Where the run computes; shown by `inspect-ckpt`.
        is_best: Whether `BEST` moves too.
        max_recent: How many checkpoints to keep; None keeps all.
        keep_every: Of the others, keep the multiples of so many steps.
        spread: How the model lies on the ranks; None for a process alone.

    Raises:
        CheckpointError: It cannot be written.
        PeerFailedError: Rank 0 could not write it.
    """
    directory = root / layout.step_directory_name(state.step)
    optim_tensors = optimizer_state_tensors(optimizer, model)
    generators: list[dict[str, torch.Tensor]] | None = [rng_tensors()]
    model_state = None
    if spread is not None:
        model_state, optim_tensors = spread.whole_model(), spread.whole_state(optim_tensors)
        generators = spread.team.collect(rng_tensors())

    def write() -> None:
        exported = export_model(model, state.tokenizer["bos_id"] if state.tokenizer else None, model_state)
        own, *others = generators or []
        snapshot = Snapshot(
            step=state.step,
            config_yaml=config_yaml,
            model_tensors=exported.tensors,
            model_config=exported.config,
            optim_tensors=optim_tensors,
            train_state=state.to_dict(),
            rng_tensors=own,
            peer_rng_tensors=tuple(others),
        )
        facts = _facts(state, lr, placement, spread)
        save(root, snapshot, facts=facts, is_best=is_best, max_recent=max_recent, keep_every=keep_every)

    if spread is None:
        write()
    else:
        spread.team.on_first(write)
    return directory


def _facts(state: TrainState, lr: float, placement: Placement, spread: Spread | None) -> dict[str, Any]:
    layout_facts = {} if spread is None else {"ranks": spread.team.place.world_size, **asdict(spread.team.degrees)}
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
