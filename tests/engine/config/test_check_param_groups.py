"""Rules for groups of parameters: what can be told wrong before the model exists."""

from __future__ import annotations

import pytest

from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.load import load_config
from automodel_cli.errors import ConfigError

MUON = "optimizer={_target_: automodel_cli.engine.optim.muon.MuonWithAdamW, lr: 0.02, adamw_lr: 3e-4}"


def check(rules, *before):
    return checked(load_config(None, [*before, f"optimizer.param_groups={rules}"]))


@pytest.mark.usefixtures("named_shards")
@pytest.mark.parametrize(
    ("rules", "before"),
    [
        ("[{pattern: 'wte*|lm_head*', lr_mult: 0.1, weight_decay: 0.0}]", []),
        ("[{pattern: 'wte*', betas: [0.8, 0.9]}, {pattern: '*', lr_mult: 2}]", []),
        ("[{pattern: 'h.0.*', muon: false}]", [MUON]),
        ("null", []),
    ],
)
def test_rules_that_the_optimizer_takes_are_accepted(rules, before):
    """Also its own options, for one group."""
    assert check(rules, *before)


@pytest.mark.usefixtures("named_shards")
@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ("{pattern: wte}", "must be a list"),
        ("[{lr_mult: 0.1}]", "must be a section with a `pattern`"),
        ("[{pattern: wte, lr_mult: -1}]", r"param_groups.0.lr_mult is -1, but it must be a number of at least 0"),
        ("[{pattern: wte, weight_decay: much}]", "'much', but it must be a number"),
        ("[{pattern: wte, lr: 1e-3}]", "lr_mult is a factor"),
        ("[{pattern: wte, lr_mul: 1}]", "did you mean `lr_mult`"),
        ("[{pattern: wte, beta: [0.1, 0.2]}]", "did you mean `betas`"),
        ("[{pattern: wte, adamw_betas: [0.1, 0.2]}]", "it holds for the whole optimizer"),
        ("[{pattern: wte, adamw_eps: 1e-6}]", "neither a rule nor .*MuonWithAdamW` takes `adamw_eps`"),
        ("[{pattern: wte, adamw_lr: 1e-3}]", "lr_mult is a factor"),
        ("[{pattern: wte, muon: true}]", "does not choose between Muon and AdamW"),
    ],
)
def test_a_wrong_rule_is_refused_with_its_place(rules, words):
    """Before the model is built."""
    with pytest.raises(ConfigError, match=words) as caught:
        check(rules, *([MUON] if "adamw_" in rules else []))

    assert "--set optimizer.param_groups" in str(caught.value)
