"""Targets are checked against source by `checked`, together with everything else, and the run would say the same."""

from __future__ import annotations

import json

import pytest

from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.check_targets import check_for_certain
from automodel_cli.engine.config.config import apply_overrides, from_parsed
from automodel_cli.engine.config.instantiate import bind, instantiate
from automodel_cli.engine.config.load import builtin_config, load_config, with_defaults
from automodel_cli.engine.config.yaml_reader import parse_yaml
from automodel_cli.errors import ConfigError

PARTS = """
class Net:
    def __init__(self, width, device, inner=None): ...
class Data:
    def __init__(self, path, seed, dp_rank, dp_world_size): ...
class Pair:
    def __init__(self, first, second): ...
"""
MUON = "optimizer={_target_: automodel_cli.engine.optim.muon.MuonWithAdamW, lr: 0.02, adamw_lr: 3e-4}"


def check(*overrides):
    return checked(with_defaults(apply_overrides(builtin_config(), overrides)))


@pytest.fixture
def check_file(tmp_path):
    """Checks the built-in configuration with sections of a file laid over it."""
    (tmp_path / "parts.py").write_text(PARTS)

    def run(text):
        above = from_parsed(parse_yaml(text, source=str(tmp_path / "run.yaml"), kind="file"))
        base = apply_overrides(builtin_config(), ["validation_dataset=null", "step_scheduler.val_every_steps=null"])
        return checked(with_defaults(base.merged(above)))

    return run


def problems(error):
    return [str(problem) for problem in error.problems or (error,)]


@pytest.mark.parametrize(
    ("override", "message", "help_"),
    [
        (
            "model.n_layers=24",
            "model: `automodel_cli.engine.models.gpt2.build_gpt2_model` takes no `n_layers`",
            "n_layer",
        ),
        ("dataset.seqlen=64", "takes no `seqlen`", "seq_len"),
        ("optimizer.weight_decai=0", "optimizer: `torch.optim.AdamW` takes no `weight_decai`", "weight_decay"),
        ("optimizer.nesterov=true", "takes no `nesterov`", "the arguments are: amsgrad, betas"),
        ("optimizer._target_=torch.optim.AdamWW", "the module `torch.optim` has no `AdamWW`", "AdamW"),
        ("optimizer._target_=torch.optim.adamw", "`torch.optim.adamw` is a module, which cannot be called", ""),
        ("model._target_=gpt.build", "the package `gpt` is not installed", "is it installed here"),
        ("model._target_=gpt.py:build", "there is no file", ""),
        ("loss_fn.reduction=sum", "takes no `reduction`", "the arguments are: label_smoothing, z_loss"),
    ],
)
def test_a_mistake_is_found_without_importing(override, message, help_):
    """The option is named, and so is the nearest right name."""
    with pytest.raises(ConfigError) as caught:
        check(override)

    assert message in str(caught.value)
    assert help_ in caught.value.help if help_ else True
    assert caught.value.where == f"--set {override.partition('=')[0]}"


def test_a_missing_argument_stands_at_the_target(check_file):
    """Line and column of `_target_`, and every argument that is missing."""
    with pytest.raises(ConfigError) as caught:
        check_file("dataset:\n  _target_: parts.py:Pair\n")

    assert "needs `first`, `second`, which the section does not give" in caught.value.message
    assert caught.value.where.endswith("run.yaml:2:13")


def test_targets_inside_others_are_checked_too(check_file):
    """In sections and in lists, at their own line; all mistakes at once, beside those of our own sections."""
    text = """
model:
  _target_: parts.py:Net
  width: 3
  inner:
    - {_target_: "parts.py:Net", width: 1, dept: 2}
    - {x: {_target_: "parts.py:Nett"}}
step_scheduler: {max_step: 3}
"""
    with pytest.raises(ConfigError) as caught:
        check_file(text)

    found = problems(caught.value)
    assert len(found) == 3
    assert "unknown key `step_scheduler.max_step`" in found[0]
    assert "run.yaml:6:44: model.inner.0: `parts.py:Net` takes no `dept`" in found[1]
    assert "run.yaml:7:22: model.inner.1.x._target_: the module `parts.py` has no `Nett`" in found[2]


def test_what_the_engine_passes_is_not_missing(check_file):
    """`device` for a model, seed and rank for a dataset, `params` for an optimizer: each where the engine gives it."""
    check_file("model: {_target_: 'parts.py:Net', width: 3}\ndataset: {_target_: 'parts.py:Data', path: x}\n")

    with pytest.raises(ConfigError, match="needs `seed`, `dp_rank`, `dp_world_size`"):
        check_file("validation_dataset: {_target_: 'parts.py:Data', path: x}\n")


@pytest.mark.parametrize(
    "text",
    [
        "model: {_target_: 'parts.py:Net', width: 3, wdith: 4}",
        "model: {_target_: 'parts.py:Net'}",
        "model: {_target_: 'parts.py:Nett'}",
        "model: {_target_: 'no_parts.py:Net'}",
        "model: {_target_: torch.nn.Linera}",
        "model: {_target_: torch.nn.Linear, in_features: 3, out_feature: 4, out_features: 4}",
    ],
)
def test_the_run_would_have_said_the_same(check_file, tmp_path, text):
    """One place phrases the problem: reading source and importing give equal messages."""
    config = from_parsed(parse_yaml(text, source=str(tmp_path / "run.yaml"), kind="file"))
    with pytest.raises(ConfigError) as read:
        check_file(text)
    with pytest.raises(ConfigError) as imported:
        bind(config, "model", {"device": "cpu"})

    assert str(read.value) == str(imported.value)


def of_transformers(**config):
    """The `model` section of a model of transformers."""
    given = {"_target_": "transformers.LlamaConfig", "vocab_size": 257, "max_position_embeddings": 128, **config}
    return f"model={json.dumps({'_target_': 'transformers.AutoModelForCausalLM.from_config', 'config': given})}"


@pytest.mark.parametrize(
    ("override", "message", "help_"),
    [
        (
            of_transformers(hiden_size=768),
            "model.config: `transformers.LlamaConfig` takes no `hiden_size`",
            "hidden_size",
        ),
        (of_transformers(n_layers=2), "takes no `n_layers`", "num_hidden_layers"),
        (of_transformers().replace("from_config", "from_confg"), "has no `from_confg`", "from_config"),
        (of_transformers().replace('"config"', '"confg"'), "needs `config`", ""),
        (
            of_transformers()[:-1] + ', "atn_implementation": "sdpa"}',
            "knows no `atn_implementation`",
            "attn_implementation",
        ),
    ],
)
def test_a_mistake_in_a_model_of_transformers_is_found(override, message, help_):
    """Keys of its configuration, the class method, and what the class method passes on."""
    with pytest.raises(ConfigError) as caught:
        check(override)

    assert message in str(caught.value)
    assert help_ in str(caught.value)


def test_what_only_kwargs_takes_is_listed_as_not_checked():
    """A keyword that looks like no known one may belong to the class that is built in the end."""
    found = check(of_transformers()[:-1] + ', "zoom": 2, "attn_implementation": "sdpa"}')

    assert [each.what for each in found.unchecked] == ["`model.zoom`"]


@pytest.fixture
def undecided(check_file, tmp_path):
    """Settings of a run whose model only an import can tell: `width` is what it takes."""
    (tmp_path / "made.py").write_text(
        "def register(cls):\n return cls\n@register\nclass Net:\n def __init__(self, width): ...\n"
    )
    return lambda keywords: check_file(f"model: {{_target_: 'made.py:Net', {keywords}}}\n")


def test_what_source_does_not_tell_is_listed_and_decided_by_the_import(undecided, tmp_path):
    """Importing finds the misspelt keyword, with place and hint; a sound one passes."""
    config = from_parsed(
        parse_yaml("model: {_target_: 'made.py:Net', widht: 4}", source=str(tmp_path / "run.yaml"), kind="file")
    )

    settings = undecided("widht: 4")

    assert [each.what for each in settings.unchecked] == ["the keywords of `made.py:Net`"]
    assert "the decorator `register` of `Net`" in settings.unchecked[0].why
    with pytest.raises(ConfigError) as caught:
        check_for_certain(config, settings.unchecked)
    assert "`made.py:Net` takes no `widht`" in problems(caught.value)[0]
    assert "run.yaml:1:34" in problems(caught.value)[0]
    assert "did you mean `width`?" in problems(caught.value)[0]


def test_an_ordinary_run_has_no_notes():
    """Everything that we ship is checked."""
    assert check().notes == ()


def test_a_model_class_of_transformers_has_the_from_config_that_guides_give_it(tmp_path):
    """`transformers.GPT2LMHeadModel.from_config` builds the model, though only Auto classes have that name."""
    text = """
model:
  _target_: transformers.GPT2LMHeadModel.from_config
  config: {_target_: transformers.GPT2Config, n_layer: 1, n_head: 1, n_embd: 8, n_positions: 8, vocab_size: 11}
"""
    config = from_parsed(parse_yaml(text, source=str(tmp_path / "run.yaml"), kind="file"))

    assert instantiate(config, "model").config.vocab_size == 11


@pytest.mark.parametrize(
    "override",
    [
        "model.dropout=0",
        "model.bias=1",
        "optimizer.fused=null",
        "optimizer.weight_decay=${AMCLI_TEST_DECAY,0.1}",
        "optimizer.betas=[0, 0.95]",
    ],
)
def test_a_value_that_its_annotation_allows_passes(override):
    """Whole numbers are numbers, 0 and 1 say false and true, and what the environment gives is looked up first."""
    assert check(override).num_checks


def test_the_users_own_annotations_are_not_enforced(check_file, tmp_path):
    """Python does not enforce them either: the code may well take more than it says."""
    (tmp_path / "loose.py").write_text("def build(width: int): ...\n")

    check_file("model: {_target_: 'loose.py:build', width: wide}\n")


def check_rules(rules, *before):
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
    assert check_rules(rules, *before)


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
        check_rules(rules, *([MUON] if "adamw_" in rules else []))

    assert "--set optimizer.param_groups" in str(caught.value)
