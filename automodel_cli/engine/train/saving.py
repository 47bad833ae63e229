"""From the live parts of a run to a checkpoint on disk."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
from torch import nn

from automodel_cli import __version__
from automodel_cli.engine.checkpoint.save import save
from automodel_cli.engine.checkpoint.snapshot import Snapshot
from automodel_cli.engine.models.export import export_model
from automodel_cli.engine.optim.state import optimizer_state_tensors
from automodel_cli.engine.train.device import Placement
from automodel_cli.engine.train.state import TrainState, rng_tensors


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
) -> Path:
    """Saves everything that a resumed run needs, and returns the checkpoint's directory.

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
    """
    exported = export_model(model, bos_id=state.tokenizer["bos_id"] if state.tokenizer else None)
    snapshot = Snapshot(
        step=state.step,
        config_yaml=config_yaml,
        model_tensors=exported.tensors,
        model_config=exported.config,
        optim_tensors=optimizer_state_tensors(optimizer, model),
        train_state=state.to_dict(),
        rng_tensors=rng_tensors(),
    )
    return save(
        root,
        snapshot,
        facts=_facts(state, lr, placement),
        is_best=is_best,
        max_recent=max_recent,
        keep_every=keep_every,
    )


def _facts(state: TrainState, lr: float, placement: Placement) -> dict[str, Any]:
    return {
        "loss": state.loss,
        "val_loss": state.val_loss,
        "tokens_seen": state.tokens_seen,
        "samples_consumed": state.samples_consumed,
        "lr": lr,
        "train_seconds": round(state.train_seconds, 3),
        "device": placement.name,
        "precision": placement.precision,
        "tokenizer": state.tokenizer,
        "versions": {"amcli": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
