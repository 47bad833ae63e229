"""What a user should know about a configuration that is sound."""

from __future__ import annotations

import pytest

from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.load import load_config


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], []),
        (["step_scheduler.max_steps=150", "lr_scheduler.lr_decay_steps=150"], []),
        (["step_scheduler.val_every_steps=601"], ["val_every_steps is 601, beyond max_steps = 600: the run validates"]),
        (["step_scheduler.ckpt_every_steps=900"], ["the run saves only at its end"]),
        (["checkpoint.enabled=false"], ["nothing is saved"]),
        (["step_scheduler.val_every_steps=null"], ["val_every_steps is null: the run validates only at its end"]),
        (
            ["step_scheduler.max_steps=6", "step_scheduler.val_every_steps=3", "step_scheduler.ckpt_every_steps=3"],
            ["lr_warmup_steps is 40, and max_steps is 6: the whole run is warm-up"],
        ),
        (
            ["lr_scheduler.lr_decay_style=constant"],
            ["min_lr does nothing while lr_decay_style is constant", "lr_decay_steps does nothing"],
        ),
        (["lr_scheduler.lr_wsd_decay_steps=50"], ["lr_wsd_decay_steps does nothing while lr_decay_style is not WSD"]),
        (["compile.backend=eager"], ["compile.backend does nothing while compile.enabled is false"]),
        (["mfu={}"], ["mfu names no peak_tflops"]),
        (["dataset.shuffle_files=true"], ["shuffle_files does nothing while dataset.shuffle is true"]),
    ],
)
def test_intervals_that_a_run_never_reaches_are_noted(overrides, words):
    """No error, since the last step validates and saves; but not what the numbers suggest."""
    notes = checked(load_config(None, overrides)).notes

    assert len(notes) == len(words)
    assert all(word in note for word, note in zip(words, notes, strict=True))
