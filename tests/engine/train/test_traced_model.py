"""A traced model has the numbers of the formulas, and those of real models that no formula knows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.declared_facts import loss_facts_of
from automodel_cli.engine.models.calling import call
from automodel_cli.engine.plan.activations import activation_bytes
from automodel_cli.engine.plan.derive import derive
from automodel_cli.engine.plan.model_config import model_shape
from automodel_cli.engine.plan.parameters import count_parameters, flops_per_token, parameter_tensors
from automodel_cli.engine.train.traced_model import UntraceableError, traced
from tests.engine.plan.conftest import SMALL_LLAMA, built, hf
from tests.engine.plan.test_memory import CONFIGS, ONE_RANK, B, T, saved_bytes

OWN = Path(__file__).parents[3] / "examples" / "custom_model.py"
POSITIONS = 8 * T  # int64 positions, which a recomputed block has as an argument, and a trace does not see


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_trace_counts_what_the_formulas_count(config):
    """Parameters by part, vocabulary, layers and FLOPs."""
    shape = model_shape(config)

    found = traced(config)

    assert count_parameters(found.tensors) == count_parameters(parameter_tensors(shape))
    assert (found.vocab_size, found.channels, found.num_layers) == (shape.vocab_size, shape.channels, shape.num_layers)
    assert found.is_tied == shape.is_tied
    assert found.flops_per_token(T) == flops_per_token(shape, T)


@pytest.mark.parametrize(
    "keys",
    [{}, {"is_bf16": True}, {"loss": loss_facts_of(Config({}))}, {"recompute": "full"}, {"recompute": "selective"}],
    ids=str,
)
@pytest.mark.parametrize("name", ["ours", "llama", "qwen3"])
def test_a_trace_keeps_what_the_formulas_keep(name, keys):
    """Activations to the byte, at a batch that was not traced itself."""
    sizes = replace(ONE_RANK, **keys)

    found = traced(CONFIGS[name]).activation_bytes(sizes, B, T)

    rest = POSITIONS if keys.get("recompute") and name != "ours" else 0
    assert found == activation_bytes(model_shape(CONFIGS[name]), sizes, B, T) - rest


@pytest.mark.parametrize(
    ("config_class", "keys"),
    [
        ("Gemma2Config", {}),
        ("NanoChatConfig", {}),
        ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    ],
)
def test_models_without_formulas_are_counted(config_class, keys):
    """Scaled embeddings, capped logits and experts: parameters of the real model, and some activations."""
    config = hf(config_class, **SMALL_LLAMA, **keys)
    assert derive(config).model is None

    found = traced(config)

    assert count_parameters(found.tensors).total == sum(p.numel() for p in built(config).parameters())
    assert found.activation_bytes(ONE_RANK, 2, T) > found.activation_bytes(ONE_RANK, 1, T) > 0
    assert found.flops_per_token(T) > 0


def test_a_model_of_ones_own_keeps_what_autograd_keeps():
    """The example of the documents, against its real tensors."""
    model = {"_target_": f"{OWN}:build_model", "vocab_size": 97, "width": 16}
    config = Config({"model": model})
    real = built(config, "cpu").train()
    batch = {"input_ids": torch.zeros(B, T, dtype=torch.int64)}

    found = traced(config)

    assert count_parameters(found.tensors).total == sum(p.numel() for p in real.parameters())
    measured = saved_bytes(real, lambda: call(real, batch), is_bf16=False)
    assert found.activation_bytes(ONE_RANK, B, T) == pytest.approx(measured, rel=0.25)


def test_ranks_that_share_a_sample_are_not_guessed():
    """A trace is of one whole model: tensor- and context-parallel ranks keep something else."""
    degrees = replace(ONE_RANK.degrees, tp=2)

    assert traced(CONFIGS["llama"]).activation_bytes(replace(ONE_RANK, degrees=degrees), B, T) is None


def test_what_cannot_be_traced_says_why(tmp_path):
    """The exception of the model's code becomes the reason."""
    file = tmp_path / "mine.py"
    file.write_text("def build():\n    raise ValueError('no such size')\n", encoding="utf-8")

    with pytest.raises(UntraceableError, match="cannot be built on tensors without content: ValueError: no such size"):
        traced(Config({"model": {"_target_": f"{file}:build"}}))
