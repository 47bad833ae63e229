"""What would give other bits on other numbers of ranks is refused beside `deterministic: elastic`."""

from __future__ import annotations

import pytest

from automodel_cli.engine.config.builtin import builtin_config
from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.config import apply_overrides
from automodel_cli.errors import ConfigError

BATCH = "step_scheduler.global_batch_size=64"


@pytest.mark.usefixtures("named_shards")
@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("distributed.tp_size=2", "inside of products"),
        ("distributed.cp_size=2", "over a sequence"),
        ("distributed.dp_replicate_size=2", "within each group first"),
        ("compile.enabled=true", "compiled for one layout"),
        ("optimizer.fused=true", "the last elements"),
        ("precision=fp8", "scales of 8-bit products"),
    ],
)
def test_what_splits_more_than_the_batch_is_refused(override, reason):
    """The key, why not, and what to leave out; the same key is no problem without `elastic`."""
    config = apply_overrides(builtin_config(), [BATCH, override])

    with pytest.raises(ConfigError) as caught:
        checked(apply_overrides(config, ["deterministic=elastic"]), world_size=4)

    assert override.partition("=")[0] + " is " in str(caught.value)
    assert reason in str(caught.value)
    checked(config, world_size=4)


@pytest.mark.usefixtures("named_shards")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_data_parallel_runs_may_be_elastic(strategy):
    """Both strategies, with accumulation."""
    settings = checked(
        apply_overrides(builtin_config(), [BATCH, "deterministic=elastic", f"distributed.strategy={strategy}"]),
        world_size=4,
    )

    assert settings.general.deterministic == "elastic"


@pytest.mark.usefixtures("named_shards")
def test_another_word_is_refused_with_the_nearest():
    """`deterministic` is true, false or one word."""
    with pytest.raises(ConfigError, match="elastic"):
        checked(apply_overrides(builtin_config(), ["deterministic=elastik"]))
