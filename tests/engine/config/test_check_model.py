"""Shapes that cannot be built are refused before anything is built, also under Hugging Face names."""

from __future__ import annotations

import pytest

from automodel_cli.engine.config.builtin import builtin_config
from automodel_cli.engine.config.check_model import check_model
from automodel_cli.engine.config.config import apply_overrides

LLAMA = (
    "model={_target_: transformers.AutoModelForCausalLM.from_config, config: {_target_: transformers.LlamaConfig, "
    "hidden_size: 96, num_attention_heads: 6, num_key_value_heads: 3, max_position_embeddings: 256}}"
)


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
