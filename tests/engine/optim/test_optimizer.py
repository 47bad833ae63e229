"""Which parameters decay, what is fused, and a state that survives as named tensors."""

from __future__ import annotations

import pytest
import torch

from automodel_cli.engine.models.gpt2 import build_gpt2_model
from automodel_cli.engine.optim.optimizer import build_optimizer, load_optimizer_state, optimizer_state_tensors
from automodel_cli.engine.optim.param_groups import GroupRule, parameter_groups
from automodel_cli.errors import CheckpointError, ConfigError


def model():
    torch.manual_seed(0)
    return build_gpt2_model(vocab_size=19, n_positions=8, n_embd=8, n_layer=2, n_head=2)


class CountsInPython(torch.optim.Optimizer):
    """A user's optimizer whose state holds numbers, and an fp32 average over weights of any type."""

    def __init__(self, params, lr=1e-2):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                average = state.setdefault("average", torch.zeros_like(parameter, dtype=torch.float32))
                state["count"] = state.get("count", 0) + 1
                state["decay"] = state.get("decay", 1.0) * 0.9
                average.lerp_(parameter.grad.float(), 0.1)
                scale = group["lr"] * state["decay"] / (1 - 0.9 ** state["count"])  # fp32 if the count is a tensor
                assert isinstance(scale, float)
                parameter.sub_((average * scale).to(parameter.dtype))


class Records(torch.optim.SGD):
    """A user's optimizer that keeps what no checkpoint can hold."""

    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["history"] = ["a list"]


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


def test_a_model_that_is_frozen_whole_is_refused():
    """Instead of torch's word about an empty list."""
    network = model().requires_grad_(False)

    with pytest.raises(ConfigError, match="GPT2LMHeadModel has no parameter that is trained"):
        build_optimizer(torch.optim.AdamW, {}, network)


def test_an_optimizer_without_weight_decay_gets_none():
    """Rprop has no such argument, and is built all the same."""
    assert build_optimizer(torch.optim.Rprop, {"lr": 1e-3}, model()).param_groups


OPTIMIZERS = {
    "AdamW": (torch.optim.AdamW, {}),
    "AdamW, no fused kernel": (torch.optim.AdamW, {"fused": False}),
    "AdamW, amsgrad": (torch.optim.AdamW, {"amsgrad": True}),
    "SGD": (torch.optim.SGD, {}),
    "SGD with momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "Adafactor, whose averages are rows and columns": (torch.optim.Adafactor, {}),
    "NAdam": (torch.optim.NAdam, {}),
    "RMSprop": (torch.optim.RMSprop, {"centered": True}),
    "Rprop": (torch.optim.Rprop, {}),
    "a user's with numbers": (CountsInPython, {}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("factory", "arguments"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_restored_optimizer_goes_on_bit_for_bit(factory, arguments, dtype):
    """5 steps equal 3 steps, a round trip through named tensors, and 2 more."""
    straight = model().to(dtype)
    optimizer = build_optimizer(factory, {"lr": 1e-2, **arguments}, straight)
    steps(straight, optimizer, 3)
    tensors = {name: tensor.clone() for name, tensor in optimizer_state_tensors(optimizer, straight).items()}
    resumed = model().to(dtype)
    resumed.load_state_dict(straight.state_dict())
    second = build_optimizer(factory, {"lr": 1e-2, **arguments}, resumed)
    load_optimizer_state(second, resumed, tensors)

    steps(straight, optimizer, 2)
    steps(resumed, second, 2)

    for (name, one), other in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_what_never_had_a_gradient_has_no_state_and_is_restored_without():
    """A model with an unused layer can be resumed."""
    network = torch.nn.ModuleDict({"used": torch.nn.Linear(2, 2), "unused": torch.nn.Linear(2, 2)})
    optimizer = build_optimizer(torch.optim.AdamW, {}, network)
    network["used"](torch.ones(2)).sum().backward()
    optimizer.step()
    tensors = optimizer_state_tensors(optimizer, network)
    second = build_optimizer(torch.optim.AdamW, {}, network)

    load_optimizer_state(second, network, tensors)

    assert {name.split(".")[0] for name in tensors} == {"used"}
    assert set(second.state) == set(network["used"].parameters())


def test_state_of_a_parameter_that_is_not_trained_is_refused():
    """A name that the model lacks and one that is frozen now are the same mistake."""
    network = model()
    optimizer = build_optimizer(torch.optim.AdamW, {}, network)
    steps(network, optimizer, 1)
    tensors = optimizer_state_tensors(optimizer, network)
    network.transformer.wpe.weight.requires_grad_(False)
    frozen = build_optimizer(torch.optim.AdamW, {}, network)

    with pytest.raises(CheckpointError, match=r"other\.weight\.exp_avg belongs to no parameter"):
        load_optimizer_state(optimizer, network, {"other.weight.exp_avg": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"wpe\.weight\.\w+ belongs to no parameter that is trained"):
        load_optimizer_state(frozen, network, tensors)


def test_a_state_that_is_neither_tensor_nor_number_is_refused_when_saved():
    """Not when the run is to be resumed, and what would be lost is gone."""
    network = model()
    optimizer = build_optimizer(Records, {"lr": 0.1}, network)
    steps(network, optimizer, 1)

    with pytest.raises(CheckpointError, match="Records keeps history as list"):
        optimizer_state_tensors(optimizer, network)


def test_a_rule_sets_rate_and_decay_of_what_its_pattern_fits():
    """By the end of a name; the first rule that fits counts, and a tied head goes by either name."""
    network = model()
    rules = [
        GroupRule("wte*|lm_head*", lr_mult=0.1, weight_decay=0.3),
        GroupRule("h.0.*", lr_mult=0.5, options={"betas": (0.8, 0.9)}),
        GroupRule("*", lr_mult=2.0),
    ]

    optimizer = build_optimizer(torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 0.1}, network, rules)

    of = {name: group for group in optimizer.param_groups for name in group["param_names"]}
    assert sorted(of) == sorted(name for name, _ in network.named_parameters())
    facts = {name: (of[name]["lr_mult"], of[name]["weight_decay"]) for name in of}
    assert facts["transformer.wte.weight"] == (0.1, 0.3)
    assert facts["transformer.h.0.mlp.c_fc.weight"] == (0.5, 0.1)
    assert facts["transformer.h.0.mlp.c_fc.bias"] == (0.5, 0.0)
    assert facts["transformer.h.1.mlp.c_fc.weight"] == (2.0, 0.1)
    assert of["transformer.h.0.ln_1.weight"]["betas"] == (0.8, 0.9)


def test_a_pattern_that_fits_nothing_names_the_nearest():
    """Each alternative has to fit something, or a misspelling would train at the wrong rate in silence."""
    with pytest.raises(ConfigError, match=r"`wtf\.weight` .* fits no parameter") as caught:
        parameter_groups(model(), 0.1, [GroupRule("wpe*|wtf.weight", where="my.yaml:3")])

    assert caught.value.help == "did you mean `wte.weight`?"
    assert caught.value.where == "my.yaml:3"
    with pytest.raises(ConfigError, match="fits no parameter") as caught:
        parameter_groups(model(), 0.1, [GroupRule("wpx.*")])
    assert caught.value.help == "did you mean `wpe.*`?"


def test_a_run_with_rules_is_resumed_bit_for_bit():
    """The state goes by name, so the number of groups does not matter."""
    rules = [GroupRule("wte*", lr_mult=0.1)]
    straight, resumed = model(), model()
    optimizer = build_optimizer(torch.optim.AdamW, {"lr": 1e-2}, straight, rules)
    steps(straight, optimizer, 2)
    tensors = {name: tensor.clone() for name, tensor in optimizer_state_tensors(optimizer, straight).items()}
    resumed.load_state_dict(straight.state_dict())
    second = build_optimizer(torch.optim.AdamW, {"lr": 1e-2}, resumed, rules)
    load_optimizer_state(second, resumed, tensors)

    steps(straight, optimizer, 2)
    steps(resumed, second, 2)

    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


def test_an_optimizer_whose_state_cannot_be_saved_is_refused_before_the_run():
    """Not at the first checkpoint, with the steps before it lost."""

    class AdamW8bit(torch.optim.AdamW):
        """By its name and module the one of torchao."""

    AdamW8bit.__module__ = "torchao.optim.adam"

    with pytest.raises(ConfigError, match="the state of AdamW8bit") as caught:
        build_optimizer(AdamW8bit, {"lr": 1e-3}, model())

    assert "bf16_stochastic_round" in caught.value.help


def test_what_is_no_optimizer_is_refused_before_it_is_used():
    """A factory that returns its groups, say."""
    with pytest.raises(ConfigError, match=r"optimizer\._target_ returned list, not a torch\.optim\.Optimizer"):
        build_optimizer(list, {}, torch.nn.Linear(2, 2))
