"""Mistakes in our own sections: found all at once, each with place, rule and remedy."""

from __future__ import annotations

import re

import pytest

from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.config import apply_overrides
from automodel_cli.engine.config.load import builtin_config, with_defaults
from automodel_cli.errors import ConfigError


def check(*overrides):
    return checked(with_defaults(apply_overrides(builtin_config(), overrides)))


def test_the_built_in_configuration_is_sound():
    """The defaults of a newcomer pass every check, and are typed."""
    settings = check()

    assert settings.step_scheduler.max_steps == 600
    assert settings.clip_grad_norm.max_norm == 1.0


@pytest.mark.parametrize(
    ("override", "message", "help_"),
    [
        ("step_scheduler.max_step=3", "unknown key `step_scheduler.max_step`", "did you mean `max_steps`?"),
        ("optimiser.lr=3", "unknown section `optimiser`", "did you mean `optimizer`?"),
        ("step_scheduler.max_steps=many", "max_steps is 'many', but it must be a whole number", ""),
        ("step_scheduler.max_steps=true", "max_steps is True, but it must be a whole number", ""),
        ("step_scheduler.max_steps=0", "must be at least 1", ""),
        ("step_scheduler.max_steps=9223372036854775808", "must be at most 9223372036854775807", ""),
        ("seed=1000000000000000000000000000000", "must be at most 9223372036854775807", ""),
        ("num_threads=1000000", "num_threads is 1000000, but it must be at most 1024", ""),
        ("dataloader.num_workers=1000000", "must be at most 1024", ""),
        ("step_scheduler.max_steps=null", "max_steps is null", ""),
        ("clip_grad_norm.max_norm=0", "must be above 0", "null does not clip"),
        (
            "lr_scheduler.lr_decay_style=cosin",
            "one of cosine, linear, constant, inverse-square-root, WSD",
            "did you mean `cosine`?",
        ),
        ("step_scheduler.global_batch_size=100", "local_batch_size x data-parallel ranks = 16 x 1 = 16", "96 or 112"),
        ("lr_scheduler.lr_decay_steps=40", "after the warm-up, lr_warmup_steps = 40", ""),
        ("model.n_head=5", "n_embd is 128, but it must be a multiple of model.n_head = 5", "4 or 8"),
        ("dataset.seq_len=129", "the model has 128 positions", "up to 128"),
        ("optimizer.lr=null", "no `lr`", "3e-4"),
        ("optimizer.lr=fast", "'fast', but it must be a number", "3e-4"),
        ("optimizer.lr=${NOT_SET}", "NOT_SET is not set", "export NOT_SET"),
        ("lr_scheduler.min_lr=0.5", "at most optimizer.lr = 0.004", "0.0004 is common"),
        ("lr_scheduler.lr_warmup_steps=10 apples", "steps, or text such as 10M tokens", ""),
        ("lr_scheduler.lr_warmup_steps=2M tokens", "after the warm-up, lr_warmup_steps = 2M tokens (977 steps)", ""),
        ("validation_dataset=null", "there is no `validation_dataset`", "null"),
        ("model=null", "the section `model` is missing", "_target_"),
        ("model._target_=3", "a `_target_` that names what to build", ""),
        ("distributed.pp_size=2", "amcli has no pipeline parallelism", "set it to 1"),
        ("checkpoint=3", "`checkpoint` must be a section", ""),
    ],
)
def test_a_mistake_gets_its_rule_and_its_remedy(override, message, help_):
    """One mistake, one message that says where it came from."""
    with pytest.raises(ConfigError) as caught:
        check(override)

    text = str(caught.value)
    assert message in text
    assert help_ in text
    assert re.search(r"quickstart\.yaml:\d+|--set|missing", text)


def test_all_mistakes_are_told_at_once():
    """Nobody has to run the check three times to find three typos."""
    with pytest.raises(ConfigError) as caught:
        check("step_scheduler.max_step=3", "seed=-1", "dataloader.num_worker=2")

    text = str(caught.value)
    assert text.startswith("3 problems")
    assert "max_steps" in text
    assert "seed is -1" in text
    assert "num_workers" in text


def test_an_environment_variable_is_checked_as_its_value(monkeypatch):
    """`${VAR,default}` has the type of what it stands for, and stays unresolved in the configuration."""
    monkeypatch.setenv("AMCLI_TEST_STEPS", "77")

    settings = check("step_scheduler.max_steps=${AMCLI_TEST_STEPS}", "seed=${AMCLI_TEST_UNSET,5}")

    assert settings.step_scheduler.max_steps == 77
    assert settings.general.seed == 5
    with pytest.raises(ConfigError, match="AMCLI_TEST_UNSET is not set"):
        check("seed=${AMCLI_TEST_UNSET}")


def test_defaults_are_marked_as_defaults():
    """`config show` can tell what nobody has set."""
    config = with_defaults(builtin_config())

    assert config.get("dataloader.num_workers") == 1
    assert config.origin(("dataloader", "num_workers")).kind == "default"
    assert config.origin(("seed",)).kind == "file"
