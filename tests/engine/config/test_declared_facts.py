"""Optimizers and losses say themselves what they are able to do: the engine asks them, by source or by class."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.config import Config, apply_overrides, read_configs
from automodel_cli.engine.config.declared_facts import (
    LossFacts,
    OptimizerFacts,
    loss_facts_of,
    optimizer_facts,
    optimizer_facts_of,
)
from automodel_cli.engine.loss.linear_ce import ChunkedLinearCrossEntropy
from automodel_cli.engine.optim.muon import Muon, MuonWithAdamW
from automodel_cli.engine.optim.optimizer import build_optimizer
from automodel_cli.engine.plan.derive import plan
from automodel_cli.engine.plan.memory import device_named
from automodel_cli.errors import ConfigError

# A user's file: an optimizer with one tensor of state, a derived one with another rule for matrices, and two losses.
CODE = """
import torch

raise RuntimeError("a plan must not run this file")


class Lion(torch.optim.Optimizer):
    state_per_parameter = 1
    has_fused_kernel = True
    options_of_whole = ("mix",)

    def __init__(self, params, lr=1e-4, weight_decay=0.0, mix=0.5, fused=False):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "fused": fused})


class LionForMatrices(Lion):
    state_per_matrix: float = 0.5
    state_of_options = {"mix": 1}


class WrongFact(Lion):
    state_per_parameter = "two"


class NarrowLoss:
    bytes_per_logit = 4

    def __call__(self, logits, labels, *, num_label_tokens): ...


class BlockLoss:
    logits_per_block = 2_048

    def of_hidden(self, hidden, weight, bias, labels, *, num_label_tokens): ...
"""


@pytest.fixture
def with_code(tmp_path, monkeypatch, tiny_run):
    """The configuration of a small run, with targets that are classes of the user's file."""
    (tmp_path / "mine.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)

    def made(optimizer: str | None = None, loss: str | None = None, *more: str) -> Config:
        chosen = [f"optimizer={{_target_: 'mine.py:{optimizer}', lr: 1e-3}}"] if optimizer else []
        chosen += [f"loss_fn={{_target_: 'mine.py:{loss}'}}"] if loss else []
        return apply_overrides(read_configs([tiny_run]), [*chosen, *more])

    return made


def memory_of(config: Config):
    return plan(config, world_size=1, device=device_named("h100")).memory


def test_a_users_optimizer_that_declares_its_state_is_planned(with_code):
    """One tensor like the weights where it says one, without that its file runs; of a derived class, by kind."""
    one, matrices = (memory_of(with_code(name)) for name in ("Lion", "LionForMatrices"))
    more = memory_of(with_code("LionForMatrices", None, "optimizer.mix=0.1"))

    assert one.optimizer == one.weights
    assert one.weights / 2 < matrices.optimizer < one.weights
    assert more.optimizer == matrices.optimizer + one.weights


def test_a_users_loss_that_declares_its_memory_is_planned(with_code):
    """Bytes for each logit of one that is given logits; blocks of one that is computed with the head."""
    config = with_code(None, "NarrowLoss")
    whole = with_code(None, None, "loss_fn._target_=automodel_cli.engine.loss.masked_ce.MaskedCrossEntropy")

    assert memory_of(config).logits * 3 == memory_of(whole).logits
    assert loss_facts_of(with_code(None, "BlockLoss")) == LossFacts(logits_per_block=2_048)
    assert memory_of(with_code(None, "BlockLoss")).logits < memory_of(whole).logits


def test_options_of_the_whole_optimizer_are_refused_for_a_group(with_code):
    """By what its class declares, without that it is imported."""
    rule = "optimizer.param_groups=[{pattern: '*', mix: 0.1}]"

    with pytest.raises(ConfigError, match="takes `mix`"):
        checked(with_code("Lion", None, rule))


def test_a_fact_of_the_wrong_type_is_named(with_code):
    """Instead of a plan that is wrong."""
    with pytest.raises(ConfigError, match=r"WrongFact\.state_per_parameter is 'two', but it must be a number"):
        optimizer_facts_of(with_code("WrongFact"))


def test_an_optimizer_that_declares_a_fused_kernel_is_asked_for_it():
    """Like torch's own, which stand in a table."""

    class Fused(torch.optim.SGD):
        has_fused_kernel = True

    fused, plain = (build_optimizer(kind, {"lr": 0.1}, torch.nn.Linear(2, 2)) for kind in (Fused, torch.optim.SGD))

    assert [group["fused"] for group in fused.param_groups] == [True] * len(fused.param_groups)
    assert not any(group["fused"] for group in plain.param_groups)


@pytest.mark.parametrize("kind", [MuonWithAdamW, Muon, torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD])
def test_source_and_class_give_the_same_facts(kind):
    """The plan and the run agree, for amcli's optimizers and for those of the table, by either name of a class."""
    asked = optimizer_facts(kind)

    for module in {kind.__module__, "torch.optim" if kind.__module__.startswith("torch.") else kind.__module__}:
        read = optimizer_facts_of(Config({"optimizer": {"_target_": f"{module}.{kind.__name__}"}}))
        assert read == asked
    assert asked.state_per_parameter is not None


def test_source_and_class_give_the_same_facts_of_the_default_loss():
    """Every fact that the class has is the one that the plan reads."""
    read = loss_facts_of(Config({}))

    for each in fields(LossFacts):
        assert getattr(read, each.name) == getattr(ChunkedLinearCrossEntropy, each.name, each.default)


def test_what_declares_nothing_is_not_known(tmp_path):
    """No guess by a name that is like a known one."""
    (tmp_path / "mine.py").write_text("class AdamW: ...")

    for target in (f"{tmp_path}/mine.py:AdamW", "torch.optim.NAdam"):
        assert optimizer_facts_of(Config({"optimizer": {"_target_": target}})) == OptimizerFacts()
