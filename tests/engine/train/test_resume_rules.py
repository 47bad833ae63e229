"""What a resumed run may change, and what only by naming it."""

from __future__ import annotations

import pytest

from automodel_cli.engine.config.emit import Change
from automodel_cli.engine.train.resume_rules import allows_other_samples, check_changes, drops_optimizer_state
from automodel_cli.errors import CheckpointError, UsageError

FREE = [
    "step_scheduler.local_batch_size",
    "step_scheduler.max_steps",
    "step_scheduler.val_every_steps",
    "lr_scheduler.lr_decay_style",
    "optimizer.lr",
    "dataset.file_pattern",
    "dataloader.num_workers",
    "distributed.strategy",
    "checkpoint.checkpoint_dir",
    "wandb.project",
    "modelling.x",
]
FIXED = [
    "model._target_",
    "model.config.num_hidden_layers",
    "seed",
    "dataset.seq_len",
    "step_scheduler.global_batch_size",
    "optimizer._target_",
]


@pytest.mark.parametrize("key", FREE)
def test_what_may_change_freely(key):
    """No consent is needed, and giving it is a mistake that is told."""
    changes = [Change(key, 1, 2)]

    check_changes(changes, [])

    with pytest.raises(UsageError, match="may change freely"):
        check_changes(changes, [key])


@pytest.mark.parametrize("key", FIXED)
def test_what_changes_only_with_consent(key):
    """The message has both values and the option that would do."""
    with pytest.raises(CheckpointError) as caught:
        check_changes([Change(key, 8, 16)], [])

    assert f"{key}: 8 -> 16" in caught.value.message
    assert f"--override-resume {key}" in caught.value.help
    check_changes([Change(key, 8, 16)], [key])


def test_all_refused_changes_are_told_at_once():
    """Also those that remain when one is allowed; a section stands for its keys."""
    changes = [Change("model.n_layer", 2, 3), Change("model.n_embd", 16, 32), Change("seed", 1, 2)]

    with pytest.raises(CheckpointError, match=r"(?s)n_layer.*n_embd.*seed"):
        check_changes(changes, [])
    with pytest.raises(CheckpointError) as caught:
        check_changes(changes, ["model"])

    assert caught.value.message.count("->") == 1


def test_a_misspelt_key_is_corrected():
    """Consent to something else is no consent."""
    with pytest.raises(UsageError) as caught:
        check_changes([Change("seed", 1, 2)], ["sed"])

    assert "seed" in caught.value.help


def test_what_follows_from_consent():
    """Other samples and a fresh optimizer are decided by the keys that were named or changed."""
    assert allows_other_samples(["dataset"])
    assert allows_other_samples(["seed"])
    assert not allows_other_samples(["model", "optimizer._target_"])
    assert drops_optimizer_state([Change("optimizer._target_", "a", "b")])
    assert not drops_optimizer_state([Change("optimizer.lr", 1, 2)])
