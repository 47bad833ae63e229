"""The forms of YAML that guides for NeMo AutoModel print: each is understood, or refused with what works."""

from __future__ import annotations

import re
import sys

import pytest

from automodel_cli.engine.config import aliases
from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.config import apply_overrides, from_parsed
from automodel_cli.engine.config.emit import to_yaml
from automodel_cli.engine.config.instantiate import instantiate
from automodel_cli.engine.config.load import builtin_config, with_defaults
from automodel_cli.engine.config.yaml_reader import parse_yaml
from automodel_cli.errors import ConfigError

SIZES = """
  vocab_size: 50258
  n_positions: 2048
  n_embd: 768
  n_layer: 12
  n_head: 12
"""
BY_FILE = "model:\n  _target_: repo/nemo_automodel/components/models/gpt2.py:build_gpt2_model" + SIZES
BY_IMPORT = "model:\n  _target_: nemo_automodel.components.models.gpt2.build_gpt2_model" + SIZES
AUTO_CONFIG = """
model:
  _target_: transformers.AutoModelForCausalLM.from_config
  config:
    _target_: transformers.AutoConfig.from_pretrained
    pretrained_model_name_or_path: gpt2
    n_layer: 12
    n_head: 12
    n_positions: 2048
    vocab_size: 50258
"""
GPT2_CONFIG = """
model:
  _target_: transformers.GPT2LMHeadModel.from_config
  config:
    _target_: transformers.GPT2Config
    n_layer: 12
    n_head: 12
    n_positions: 2048
    vocab_size: 50258
"""
WHOLE = (
    BY_IMPORT
    + """
dataset:
  _target_: nemo_automodel.components.datasets.llm.nanogpt_dataset.NanogptDataset
  file_pattern: "tools/fineweb_max_tokens_500M/dataset.bin"
  seq_len: 1024
  shuffle_files: true
distributed:
  _target_: nemo_automodel.components.distributed.fsdp2.FSDP2Manager
  dp_size: null
  tp_size: 1
  cp_size: 1
"""
)
WANDB = """
wandb:
  project: "nanogpt-pretraining"
  entity: "your-wandb-entity"
  name: "nanogpt-500M-tokens"
"""
OTHER_SECTIONS = """
recipe: TrainFinetuneRecipeForNextTokenPrediction
dist_env: {backend: nccl, timeout_minutes: 1}
loss_fn: {_target_: nemo_automodel.components.loss.masked_ce.MaskedCrossEntropy}
dataloader: {collate_fn: nemo_automodel.components.datasets.utils.default_collater}
distributed:
  _target_: nemo_automodel.components.distributed.ddp.DDPManager
  dp_size: none
  sequence_parallel: false
packed_sequence: {packed_sequence_size: 0}
"""


@pytest.fixture
def guide(tmp_path, hollow_shard):
    """Checks a block laid over the built-in configuration, in a directory with the files that the guide names."""
    hollow_shard(tmp_path / "tools/fineweb_max_tokens_500M/dataset.bin")
    source = tmp_path / "repo/nemo_automodel/components/models/gpt2.py"
    source.parent.mkdir(parents=True)
    source.write_text(
        "def build_gpt2_model(*, vocab_size=50257, n_positions=2048, n_embd=768, n_layer=12, n_head=12): ..."
    )

    def run(text, *overrides):
        above = from_parsed(parse_yaml(text, source=str(tmp_path / "guide.yaml"), kind="file"))
        base = apply_overrides(builtin_config(), ["validation_dataset=null", "step_scheduler.val_every_steps=null"])
        return checked(with_defaults(apply_overrides(base.merged(above), overrides)))

    return run


@pytest.mark.parametrize(
    ("block", "notes"),
    [
        (BY_FILE, ["runs code of"]),
        (BY_IMPORT, ["nemo_automodel is not installed: build_gpt2_model is amcli's own"]),
        (AUTO_CONFIG, []),
        (GPT2_CONFIG, []),
        (
            WHOLE,
            [
                "FSDP2Manager, NanogptDataset and build_gpt2_model are amcli's own",
                "dataset.shuffle_files does nothing while dataset.shuffle is true",
            ],
        ),
        (WANDB, []),
        (OTHER_SECTIONS, ["DDPManager, MaskedCrossEntropy and default_collater are amcli's own"]),
    ],
    ids=["file", "import path", "AutoConfig", "GPT2Config", "data and FSDP2", "wandb", "other sections"],
)
def test_each_block_passes_and_says_what_stands_in(guide, block, notes):
    """One line for all names that amcli takes over, and one for each file of code.

    All is checked but what `from_pretrained` puts over a configuration that only the hub knows.
    """
    found = guide(block).notes

    passed_on = ["n_layer", "n_head", "n_positions", "vocab_size"] if block is AUTO_CONFIG else []
    assert [each.what for each in guide(block).unchecked] == [f"`model.config.{name}`" for name in passed_on]
    assert len(found) == len(notes)
    for said, expected in zip(found, notes, strict=True):
        assert expected in said


def test_a_clone_that_is_not_there_is_answered_with_our_own_module(guide):
    """The guide's path is a place-holder; the message says what to write instead."""
    with pytest.raises(ConfigError, match=r"there is no file /abs/path/to/repo") as caught:
        guide(BY_FILE.replace("repo/", "/abs/path/to/repo/"))

    assert caught.value.help == "amcli has its own: automodel_cli.engine.models.gpt2.build_gpt2_model"


def test_the_managers_are_strategies(guide):
    """A manager names the strategy; beside the same name it is no contradiction."""
    assert guide(WHOLE).distributed.chosen_strategy() == "fsdp2"
    assert guide(OTHER_SECTIONS).distributed.chosen_strategy() == "ddp"
    assert guide(WHOLE, "distributed.strategy=fsdp2").distributed.chosen_strategy() == "fsdp2"
    assert guide("distributed: {strategy: ddp}").distributed.chosen_strategy() == "ddp"


def test_the_sections_have_their_values(guide):
    """What the run is called, and how long ranks wait, is there for the part that needs it."""
    assert guide(WANDB).wandb.name == "nanogpt-500M-tokens"
    assert guide(OTHER_SECTIONS).dist_env.timeout_minutes == 1.0
    assert guide("wandb:\ndist_env:\n").wandb.project is None


@pytest.mark.parametrize(
    ("override", "message", "help_"),
    [
        (
            "distributed.tp_size=5",
            "distributed.tp_size is 5, but it must divide model.n_head = 12",
            "1, 2, 3, 4, 6, 12",
        ),
        ("distributed.dp_size=7", "a multiple of\nthe 7 data-parallel ranks", "would work"),
        ("distributed.pp_size=2", "distributed.pp_size is 2", "set it to 1"),
        (
            "distributed.strategy=ddp",
            "strategy is ddp, but distributed._target_ is the manager of fsdp2",
            "one of the two",
        ),
        ("distributed._target_=my.Manager", "one of null, nemo_automodel.components.distributed.ddp", ""),
        ("distributed.dtype=bfloat16", "the precision of amcli is set at the top level", "write `precision: bf16`"),
        ("packed_sequence.packed_sequence_size=4096", "but the model has", "a packed_sequence_size up to"),
        ("wandb.projekt=x", "unknown key `wandb.projekt`", "did you mean `project`?"),
        ("recipe=finetune", "recipe is 'finetune', but it must be one of", ""),
        ("dist_env.backend=mpi", "must be one of null, nccl, gloo", ""),
        ("dataloader.collate_fn=my.collate", "must be one of null, nemo_automodel", ""),
        (
            "model.n_layers=24",
            "`nemo_automodel.components.models.gpt2.build_gpt2_model` takes no `n_layers`",
            "n_layer",
        ),
    ],
)
def test_what_this_version_cannot_do_is_refused_with_what_works(guide, override, message, help_):
    """No setting is accepted and then ignored."""
    with pytest.raises(ConfigError) as caught:
        guide(WHOLE, override)

    assert message in caught.value.message
    assert help_ in (caught.value.help or "")


def test_a_precision_that_agrees_is_accepted(guide):
    """`dtype: bfloat16` beside `precision: bf16` says the same twice."""
    assert guide("precision: bf16\ndistributed: {dtype: bfloat16}").general.precision == "bf16"


def test_wandb_needs_no_note(guide):
    """It is reported to, or it is off."""
    assert guide("wandb: {project: p}").notes == ()
    assert guide("wandb: {enabled: false}").notes == ()


def test_the_names_build_our_own_parts(tmp_path):
    """What the check understands, the run builds; the configuration keeps the name as it was written."""
    text = "model: {_target_: nemo_automodel.components.models.gpt2.build_gpt2_model, vocab_size: 11, n_positions: 8,"
    config = from_parsed(parse_yaml(f"{text} n_embd: 8, n_layer: 1, n_head: 2}}", source="guide.yaml", kind="file"))

    assert type(instantiate(config, "model")).__module__ == "automodel_cli.engine.models.gpt2"
    assert re.search("_target_: nemo_automodel", to_yaml(config))


def test_where_that_package_is_installed_its_own_code_is_meant(tmp_path, monkeypatch):
    """No name is taken from somebody who has it."""
    target = "nemo_automodel.components.models.gpt2.build_gpt2_model"
    assert aliases.resolved(target) == "automodel_cli.engine.models.gpt2.build_gpt2_model"

    (tmp_path / "nemo_automodel").mkdir()
    (tmp_path / "nemo_automodel/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)

    assert aliases.resolved(target) == target
    assert aliases.substitution_note([target]) is None
    assert "nemo_automodel" not in sys.modules


def test_keys_that_few_people_meet_are_not_shown():
    """`config show` of an ordinary run does not list the vocabulary of other tools."""
    shown = with_defaults(builtin_config())

    assert not {"wandb", "dist_env", "packed_sequence", "recipe"} & set(shown.values)
    assert set(shown.get("distributed")) == {"strategy", "dp_size", "tp_size", "cp_size"}
