"""Muon: the mathematics, which parameters it takes, and that two optimizers are one."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import nn

from automodel_cli.engine.models.gpt2 import build_gpt2_model
from automodel_cli.engine.optim.muon import Muon, MuonWithAdamW, orthogonalised
from automodel_cli.engine.optim.optimizer import (
    CombinedOptimizer,
    build_optimizer,
    load_optimizer_state,
    optimizer_state_tensors,
)
from automodel_cli.engine.optim.param_groups import GroupRule, hidden_matrices
from automodel_cli.errors import ConfigError

ARGUMENTS = {"lr": 0.02, "adamw_lr": 1e-3, "weight_decay": 0.1}


def model():
    torch.manual_seed(0)
    return build_gpt2_model(vocab_size=19, n_positions=8, n_embd=16, n_layer=2, n_head=2)


def train(network, optimizer, count):
    for _ in range(count):
        network(torch.arange(8)[None]).logits.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def digest(network):
    whole = hashlib.sha256()
    for name, parameter in network.named_parameters():
        whole.update(name.encode() + parameter.detach().contiguous().numpy().tobytes())
    return whole.hexdigest()


def reference(matrix, steps=5):
    """The iteration as it stands in the paper, in fp64 and without any fused operation."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.double() / matrix.double().norm()
    if matrix.shape[0] > matrix.shape[1]:
        x = x.T
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + b * gram @ x + c * gram @ gram @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


@pytest.mark.parametrize("shape", [(32, 32), (48, 16), (16, 48)])
def test_newton_schulz_is_the_iteration_of_the_paper(shape):
    """To the precision of bf16, and the singular values come near 1."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))

    ours = orthogonalised(matrix).double()

    assert (ours - reference(matrix)).abs().max() < 0.03
    values = torch.linalg.svdvals(ours)
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_a_stack_of_matrices_is_orthogonalised_one_by_one():
    """Experts share a tensor, not their directions."""
    stack = torch.randn(3, 8, 12, generator=torch.Generator().manual_seed(2))

    assert torch.allclose(orthogonalised(stack), torch.stack([orthogonalised(one) for one in stack]), atol=0.02)


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_on_whole_matrices_it_is_torch_s_own_bit_for_bit(adjust, nesterov):
    """5 steps, tall and wide matrices, with decay."""
    ours = nn.Sequential(nn.Linear(6, 10, bias=False), nn.Linear(10, 4, bias=False))
    theirs = nn.Sequential(nn.Linear(6, 10, bias=False), nn.Linear(10, 4, bias=False))
    theirs.load_state_dict(ours.state_dict())
    arguments = {"lr": 0.05, "weight_decay": 0.1, "nesterov": nesterov, "adjust_lr_fn": adjust}
    pairs = [
        (ours, Muon(ours.parameters(), **arguments)),
        (theirs, torch.optim.Muon(theirs.parameters(), **arguments)),
    ]

    for network, optimizer in pairs:
        for seed in range(5):
            network(torch.randn(7, 6, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest():
    """Neither embeddings nor norms nor biases; every parameter once."""
    network = model()

    optimizer = build_optimizer(MuonWithAdamW, ARGUMENTS, network)

    muon = [name for group in optimizer.param_groups if "momentum" in group for name in group["param_names"]]
    adamw = [name for group in optimizer.param_groups if "betas" in group for name in group["param_names"]]
    assert all(name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) for name in muon)
    assert sorted(muon + adamw) == sorted(name for name, _ in network.named_parameters())
    assert {"transformer.wte.weight", "transformer.ln_f.weight"} <= set(adamw)


def test_a_head_of_its_own_is_no_hidden_matrix():
    """By name in a user's module; a rule may say otherwise."""
    network = nn.ModuleDict({"emb": nn.Embedding(5, 4), "mix": nn.Linear(4, 4), "lm_head": nn.Linear(4, 5)})

    assert hidden_matrices(network) == {"mix.weight"}
    assert hidden_matrices(network, [GroupRule("lm_head.weight", muon=True)]) == {"mix.weight", "lm_head.weight"}
    assert hidden_matrices(network, [GroupRule("mix.*", muon=False)]) == set()


def test_the_head_of_a_model_of_transformers_is_found_by_its_method():
    """Llama's is not tied, and a stack of experts is a stack of matrices."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=17, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2
    )

    names = hidden_matrices(transformers.LlamaForCausalLM(config))

    assert len(names) == 7
    assert all(".layers.0." in name for name in names)


def test_both_rates_follow_one_schedule_in_proportion():
    """As the training step writes it: `lr` times the group's own factor."""
    optimizer = build_optimizer(MuonWithAdamW, ARGUMENTS, model(), [GroupRule("wpe*", lr_mult=0.5)])

    rates = {
        name: 0.01 * group.get("lr_mult", 1.0) for group in optimizer.param_groups for name in group["param_names"]
    }

    assert rates["transformer.h.0.mlp.c_fc.weight"] == 0.01
    assert rates["transformer.wte.weight"] == pytest.approx(5e-4)
    assert rates["transformer.wpe.weight"] == pytest.approx(2.5e-4)


def test_it_learns_where_both_optimizers_are_needed():
    """The loss falls, and every parameter moves."""
    network = model()
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    optimizer = build_optimizer(MuonWithAdamW, ARGUMENTS, network)

    first = network(torch.arange(8)[None]).logits.square().sum().item()
    train(network, optimizer, 10)

    assert network(torch.arange(8)[None]).logits.square().sum().item() < 0.7 * first
    assert all(not torch.equal(before[name], parameter) for name, parameter in network.named_parameters())


def test_a_restored_pair_goes_on_bit_for_bit():
    """5 steps have the SHA-256 of 3 steps, a round trip through one set of named tensors, and 2 more."""
    straight, resumed = model(), model()
    optimizer = build_optimizer(MuonWithAdamW, ARGUMENTS, straight)
    train(straight, optimizer, 3)
    tensors = {name: tensor.clone() for name, tensor in optimizer_state_tensors(optimizer, straight).items()}
    resumed.load_state_dict(straight.state_dict())
    second = build_optimizer(MuonWithAdamW, ARGUMENTS, resumed)
    load_optimizer_state(second, resumed, tensors)

    train(straight, optimizer, 2)
    train(resumed, second, 2)

    assert {name.rpartition(".")[2] for name in tensors} == {"momentum_buffer", "exp_avg", "exp_avg_sq", "step"}
    assert digest(straight) == digest(resumed)


def test_a_rate_written_into_the_groups_reaches_the_optimizer_that_owns_it():
    """Also after a state was loaded, which replaces groups and state."""
    first, second = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    pair = CombinedOptimizer([torch.optim.SGD([first], lr=1.0), torch.optim.SGD([second], lr=1.0)])
    pair.load_state_dict(pair.state_dict())
    first.grad, second.grad = torch.ones(2, 2), torch.ones(2)

    pair.param_groups[0]["lr"], pair.param_groups[1]["lr"] = 0.25, 0.5
    pair.step()

    assert first.tolist() == [[0.75, 0.75], [0.75, 0.75]]
    assert second.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"adamw_lr": None}, "has no adamw_lr"), ({"lr": 0.0}, "must be above 0")],
)
def test_rates_that_cannot_belong_together_are_refused(arguments, words):
    """Before the first step."""
    with pytest.raises(ConfigError, match=words):
        build_optimizer(MuonWithAdamW, ARGUMENTS | arguments, model())


def test_a_model_without_hidden_matrices_and_a_rule_for_a_norm_are_refused():
    """With what would work."""
    with pytest.raises(ConfigError, match="no hidden matrix"):
        build_optimizer(MuonWithAdamW, ARGUMENTS, nn.ModuleDict({"emb": nn.Embedding(5, 4), "norm": nn.LayerNorm(4)}))
    with pytest.raises(ConfigError, match=r"sends transformer\.ln_f\.weight \(16\) to Muon"):
        build_optimizer(MuonWithAdamW, ARGUMENTS, model(), [GroupRule("ln_f.weight", muon=True)])
