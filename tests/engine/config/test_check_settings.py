"""Shapes that cannot be built are refused before anything is built, also under Hugging Face names."""

from __future__ import annotations

import pytest

from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.check_settings import check_model
from automodel_cli.engine.config.config import apply_overrides
from automodel_cli.engine.config.load import builtin_config
from automodel_cli.errors import ConfigError

LLAMA = (
    "model={_target_: transformers.AutoModelForCausalLM.from_config, config: {_target_: transformers.LlamaConfig, "
    "hidden_size: 96, num_attention_heads: 6, num_key_value_heads: 3, max_position_embeddings: 256}}"
)
BATCH = "step_scheduler.global_batch_size=64"


def problems(*overrides):
    found = []
    check_model(apply_overrides(builtin_config(), overrides), lambda *problem: found.append(problem))
    return found


@pytest.mark.parametrize(
    ("overrides", "key", "rule", "help_"),
    [
        (["model.n_head=5"], "model.n_head", "a multiple of model.n_head = 5", "n_head 4 or 8"),
        (["model.n_head=200"], "model.n_head", "model.n_embd is 128", "n_head 128 would work"),
        (["model.n_positions=64"], "dataset.seq_len", "64 positions (model.n_positions)", "up to 64"),
        ([LLAMA, "model.config.num_attention_heads=7"], "model.config.num_attention_heads", "96", "6 or 8"),
        ([LLAMA, "model.config.num_key_value_heads=4"], "model.config.num_key_value_heads", "multiple of", "3 or 6"),
        ([LLAMA, "dataset.seq_len=257"], "dataset.seq_len", "256 positions (model.config.max_position", "up to 256"),
        (["validation_dataset.seq_len=129"], "validation_dataset.seq_len", "128 positions", "up to 128"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused_with_one_that_does(overrides, key, rule, help_):
    """The key that people change, the rule with its numbers, and the nearest numbers that work."""
    found = problems(*overrides)

    assert found[0][0] == key
    assert rule in found[0][1]
    assert help_ in found[0][2]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [LLAMA],
        [LLAMA, "model.config.num_attention_heads=7", "model.config.head_dim=16", "model.config.num_key_value_heads=7"],
    ],
    ids=["quickstart", "llama", "head_dim"],
)
def test_shapes_that_can_be_built_pass(overrides):
    """A model whose heads have a size of their own need not divide its width."""
    assert problems(*overrides) == []


def test_numbers_by_way_of_the_environment_are_checked_too(monkeypatch):
    """`${VAR}` stands for what it is when the run starts."""
    monkeypatch.setenv("AMCLI_TEST_HEADS", "5")

    assert problems("model.n_head=${AMCLI_TEST_HEADS}")[0][0] == "model.n_head"


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
