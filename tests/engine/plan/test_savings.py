"""What a run could change to need less memory: sound settings, ranked by what they save."""

from __future__ import annotations

import pytest

from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.config import Config, apply_overrides, read_configs
from automodel_cli.engine.plan.savings import needed, savings


@pytest.fixture
def config(tiny_run) -> Config:
    """A run in fp32 on CPUs, with all of its logits."""
    masked = "loss_fn._target_=automodel_cli.engine.loss.masked_ce.MaskedCrossEntropy"
    return apply_overrides(read_configs([tiny_run]), ["precision=fp32", "device=cpu", "model.vocab_size=5000", masked])


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_what_is_named_saves_what_is_said_and_passes_the_checks(config, world_size, strategy):
    """Typed behind the command, each option gives the estimate that was promised."""
    config = apply_overrides(config, [f"distributed.strategy={strategy}"])
    before = needed(config, world_size).total

    found = savings(config, world_size)

    assert [saving.saved_bytes for saving in found] == sorted((s.saved_bytes for s in found), reverse=True)
    assert len(found) >= 4
    for saving in found:
        changed = apply_overrides(config, [part for part in saving.options.split() if part != "--set"])
        checked(changed, world_size)
        assert needed(changed, world_size).total == before - saving.saved_bytes


def test_half_the_batch_keeps_the_samples_of_a_step(config):
    """The smaller batch divides a rank's samples: 12 of 6 become 3, not 4."""
    config = apply_overrides(config, ["step_scheduler.global_batch_size=18", "step_scheduler.local_batch_size=6"])

    named = [saving.options for saving in savings(config, 1)]

    assert "--set step_scheduler.local_batch_size=3" in named


def test_what_is_in_use_is_not_named_again(config):
    """Settings that are as sparing as they can be leave nothing of their kind to say."""
    sparing = ["activation_checkpointing.mode=full", "precision=bf16-params", "step_scheduler.local_batch_size=1"]

    named = " ".join(saving.options for saving in savings(apply_overrides(config, sparing), 1))

    assert not any(topic in named for topic in ("activation_checkpointing", "precision", "local_batch_size"))


def test_an_unknown_model_gets_settings_without_numbers(config):
    """Nothing is computed of a model that would have to be built, and what helps every model is still said."""
    unknown = apply_overrides(config, ["model={_target_: torch.nn.Linear, in_features: 1, out_features: 1}"])

    found = savings(unknown, 1)

    assert found[0].options == "--set step_scheduler.local_batch_size=2"
    assert {saving.saved_bytes for saving in found} == {None}


def test_gpus_that_are_not_used_are_named(config):
    """More ranks hold smaller parts; on CPUs they would share one memory, so they are no help there."""
    one_sample = apply_overrides(config, ["step_scheduler.local_batch_size=1"])

    on_gpus, on_cpus = ([saving.options for saving in savings(one_sample, 2, num_gpus=number)] for number in (4, 0))

    assert "--nproc-per-node 4" in on_gpus
    assert not any("nproc" in options or "offload" in options for options in on_cpus)
