"""Which parameters decay, what is fused, and a state that survives as named tensors."""

from __future__ import annotations

import pytest
import torch

from automodel_cli.engine.models.gpt2 import build_gpt2_model
from automodel_cli.engine.optim.build import build_optimizer
from automodel_cli.engine.optim.param_groups import parameter_groups
from automodel_cli.engine.optim.state import load_optimizer_state, optimizer_state_tensors
from automodel_cli.errors import CheckpointError


def model():
    torch.manual_seed(0)
    return build_gpt2_model(vocab_size=19, n_positions=8, n_embd=8, n_layer=2, n_head=2)


def steps(network, optimizer, count):
    for _ in range(count):
        network(torch.arange(8)[None]).logits.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_matrices_decay_and_norms_biases_and_embeddings_do_not():
    """Every parameter stands in exactly one group, the tied head with the embedding."""
    network = model()
    decayed, plain = parameter_groups(network, 0.1)

    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert all(name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) for name in decayed["param_names"])
    assert {"transformer.wte.weight", "transformer.wpe.weight", "transformer.ln_f.weight"} <= set(plain["param_names"])
    names = decayed["param_names"] + plain["param_names"]
    assert sorted(names) == sorted(name for name, _ in network.named_parameters())


def test_frozen_parameters_are_left_out():
    """An optimizer never holds state for what it may not change."""
    network = model()
    network.transformer.wpe.weight.requires_grad_(False)

    names = [name for group in parameter_groups(network, 0.1) for name in group["param_names"]]

    assert "transformer.wpe.weight" not in names


@pytest.mark.parametrize(("arguments", "fused"), [({}, True), ({"fused": False}, False), ({"foreach": True}, None)])
def test_adamw_is_fused_unless_told_otherwise(arguments, fused):
    """The user's own choice wins."""
    optimizer = build_optimizer(torch.optim.AdamW, {"lr": 1e-3, **arguments}, model())

    assert optimizer.param_groups[0]["fused"] is fused
    assert optimizer.param_groups[0]["weight_decay"] == 1e-2  # AdamW's own default


def test_an_optimizer_without_weight_decay_gets_none():
    """Rprop has no such argument, and is built all the same."""
    assert build_optimizer(torch.optim.Rprop, {"lr": 1e-3}, model()).param_groups


@pytest.mark.parametrize(
    ("factory", "arguments"),
    [(torch.optim.AdamW, {}), (torch.optim.AdamW, {"fused": False}), (torch.optim.SGD, {"momentum": 0.9})],
)
def test_a_restored_optimizer_goes_on_bit_for_bit(factory, arguments):
    """5 steps equal 3 steps, a round trip through named tensors, and 2 more."""
    straight = model()
    optimizer = build_optimizer(factory, {"lr": 1e-2, **arguments}, straight)
    steps(straight, optimizer, 3)
    tensors = {name: tensor.clone() for name, tensor in optimizer_state_tensors(optimizer, straight).items()}
    resumed = model()
    resumed.load_state_dict(straight.state_dict())
    second = build_optimizer(factory, {"lr": 1e-2, **arguments}, resumed)
    load_optimizer_state(second, resumed, tensors)

    steps(straight, optimizer, 2)
    steps(resumed, second, 2)

    for (name, one), other in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_the_state_of_another_model_is_refused():
    """Unknown names, other shapes and gaps each say so."""
    network = model()
    optimizer = build_optimizer(torch.optim.AdamW, {}, network)
    steps(network, optimizer, 1)
    tensors = optimizer_state_tensors(optimizer, network)
    name = "transformer.wpe.weight.exp_avg"

    for change, words in [
        ({"other.weight.exp_avg": tensors[name]}, "belongs to no parameter"),
        ({name: torch.zeros(3)}, "has the shape"),
    ]:
        with pytest.raises(CheckpointError, match=words):
            load_optimizer_state(optimizer, network, {**tensors, **change})
    partial = {key: value for key, value in tensors.items() if not key.startswith("transformer.wpe")}
    with pytest.raises(CheckpointError, match=r"no optimizer state for transformer\.wpe\.weight"):
        load_optimizer_state(optimizer, network, partial)
