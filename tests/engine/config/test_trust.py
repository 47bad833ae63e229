"""What a checkpoint may run without consent: nothing but parts of known kinds, and no code beside them."""

from __future__ import annotations

import builtins
import importlib
import json
import os
import sys

import pytest
import torch

from automodel_cli.engine.config.config import from_parsed, read_configs
from automodel_cli.engine.config.instantiate import bind, building, instantiate
from automodel_cli.engine.config.target import resolve_target
from automodel_cli.engine.config.trust import is_buildable, remember_code, trust_problems
from automodel_cli.engine.config.yaml_reader import parse_yaml
from automodel_cli.errors import ConfigError

LLAMA = (
    "_target_: transformers.LlamaConfig, vocab_size: 17, hidden_size: 8, intermediate_size: 8, "
    "num_hidden_layers: 1, num_attention_heads: 1"
)
FROM_CONFIG = "{_target_: transformers.AutoModelForCausalLM.from_config, config: {" + LLAMA + "%s}%s}"

# Functions, methods, classes of other kinds, private names, and modules that attributes lead to.
UNKNOWN = [
    *("os.system", "posix.system", "logging.os.system", "subprocess.run", "builtins.exec", "pickle.load"),
    *("functools.partial", "collections.OrderedDict", "runpy.run_path", "importlib.import_module", "ctypes.CDLL"),
    *("torch.load", "torch.hub.load", "torch.jit.load", "torch.save", "torch.tensor", "torch.compile", "torch.Tensor"),
    *("torch.package.PackageImporter", "torch.utils.cpp_extension.load", "torch.utils.data.DataLoader"),
    *("torch.distributed.checkpoint.load", "torch.serialization.load", "torch.ops.load_library"),
    *("torch.nn.init.normal_", "torch.nn.functional.dropout", "torch.nn.utils.parametrize.cached"),
    *("torch.nn.utils.clip_grad_norm_", "torch.nn.utils.rnn.pack_sequence", "torch.nn.Parameter", "torch.nn.Module.to"),
    *("torch.nn.Module.load_state_dict", "torch.nn.Module.register_forward_hook", "torch.nn.Linear.__init__"),
    *("torch.nn.modules.module._load_state_dict_into_model", "torch.nn.modules.module.register_module_forward_hook"),
    *("torch.nn.modules.module.torch.load", "torch.nn.modules.module.torch.hub.load"),
    *("torch.nn.modules.module.functools.partial", "torch.nn.modules.module.warnings.sys.exit"),
    *("torch.nn.attention._registry.register_flash_attention_impl", "torch.nn._reduction.get_enum"),
    *("torch.nn.attention.varlen.varlen_attn", "torch.nn.quantized.dynamic.Linear", "torch.nn.qat.Linear"),
    *("torch.optim.lr_scheduler.LambdaLR", "torch.optim.lr_scheduler.StepLR", "torch.optim.Optimizer.load_state_dict"),
    *("torch.optim.swa_utils.get_ema_avg_fn", "torch.optim._functional.adam", "torch.optim.optimizer.torch.load"),
    *("torch.optim.optimizer.register_optimizer_step_pre_hook", "torch.optim.optimizer.functools.partial"),
    *("transformers.modeling_utils.load_state_dict", "transformers.dynamic_module_utils.get_class_from_dynamic_module"),
    *("transformers.pipeline", "transformers.TrainingArguments", "transformers.RagRetriever"),
    *("transformers.RagRetriever.from_pretrained", "transformers.GenerationConfig.from_pretrained"),
    *("transformers.AutoModel.register", "transformers.AutoConfig.register", "transformers.AutoConfig.for_model"),
    *("transformers.AutoProcessor.from_pretrained", "transformers.GPT2TokenizerFast", "transformers.AutoModel"),
    *("transformers.GPT2LMHeadModel._from_config", "transformers.GPT2LMHeadModel.config_class"),
    *("transformers.GPT2LMHeadModel.config_class.from_pretrained", "transformers.GPT2Config.from_dict"),
    *("transformers.GPT2Config.from_json_file", "transformers.GPT2LMHeadModel.from_pretrained.__func__"),
    *("transformers.GPT2LMHeadModel.register_for_auto_class", "transformers.GPT2LMHeadModel.load_adapter"),
    *("transformers.models.llama.modeling_llama.torch.load", "transformers.models.auto.auto_factory.get_values"),
    *("transformers.models.auto.auto_factory.get_class_from_dynamic_module", "transformers.utils.hub.cached_file"),
    *("transformers.models.rag.retrieval_rag.LegacyIndex", "transformers.integrations.hub_kernels.get_kernel"),
    *(
        "transformers.trainer_utils.run_hp_search_optuna",
        "transformers.BitsAndBytesConfig",
        "transformers.TorchAoConfig",
    ),
    *("automodel_cli.app.run", "automodel_cli.engine.config.instantiate.instantiate", "automodel_cli.commands.sample"),
    *("automodel_cli.engine.checkpoint.read_tensors.read_weights", "automodel_cli.engine.models.export.import_tensors"),
    *(
        "automodel_cli.engine.models.stored_weights.adopt_weights",
        "automodel_cli.engine.optim.optimizer.build_optimizer",
    ),
    *("automodel_cli.engine.models.gpt2.torch.load", "automodel_cli.engine.data.packed_dataset.pack_documents"),
    *("numpy.load", "datasets.load_dataset", "datasets.Dataset.from_generator", "tokenizers.Tokenizer.from_file"),
    *("mine.py:build", "/tmp/mine.py:build", "~/mine.py:build", "wandb.init", "just_a_word", "torch..nn.Linear", ""),
]
KNOWN = [
    *("torch.nn.Linear", "torch.nn.Sequential", "torch.optim.AdamW", "torch.optim.Adafactor", "torch.nn.Embedding"),
    *("transformers.LlamaConfig", "transformers.LlamaForCausalLM", "transformers.LlamaConfig.from_pretrained"),
    *("transformers.AutoModelForCausalLM.from_config", "transformers.AutoModelForCausalLM.from_pretrained"),
    *("transformers.GPT2LMHeadModel.from_config", "transformers.GPT2LMHeadModel.from_pretrained"),
    *("transformers.AutoConfig.from_pretrained", "transformers.AutoTokenizer.from_pretrained"),
    *("transformers.GPT2TokenizerFast.from_pretrained", "transformers.models.llama.modeling_llama.LlamaForCausalLM"),
    *("automodel_cli.engine.models.gpt2.build_gpt2_model", "automodel_cli.engine.models.gpt2.GPT2LMHeadModel"),
    *("automodel_cli.engine.loss.masked_ce.MaskedCrossEntropy", "automodel_cli.engine.optim.muon.MuonWithAdamW"),
    *("automodel_cli.engine.loss.linear_ce.ChunkedLinearCrossEntropy", "automodel_cli.engine.optim.muon.Muon"),
    *(
        "automodel_cli.engine.data.nanogpt_dataset.NanogptDataset",
        "automodel_cli.engine.loss.liger.LigerLinearCrossEntropy",
    ),
    *("automodel_cli.engine.data.megatron_dataset.MegatronPretraining", "torch.optim.Muon"),
    *("automodel_cli.engine.data.text_stream.TokenizedTextStream",),
]


@pytest.fixture
def stored(tmp_path):
    """A configuration as it lies in a checkpoint: `model` is the text."""

    def of(text, kind="checkpoint"):
        source = tmp_path / "run/step_000003/config.yaml"
        return from_parsed(parse_yaml(f"model: {text}", source=str(source), kind=kind))

    return of


@pytest.mark.parametrize("target", UNKNOWN)
def test_a_checkpoint_names_only_parts_of_known_kinds(stored, target):
    """Whatever else it names is refused before it is called, at its place, with the option that consents."""
    config = stored(f"{{_target_: '{target}', path: x}}")

    with pytest.raises(ConfigError) as caught:
        bind(config, "model")

    refused = caught.value.problems[0] if caught.value.problems else caught.value
    assert "code that amcli does not know" in refused.message or "has no `" in refused.message
    assert "config.yaml:1:19" in refused.where


@pytest.mark.parametrize("value", ["evil/${HF_TOKEN}", "[x, {a: '${AWS_SECRET_ACCESS_KEY,none}'}]"])
def test_a_checkpoint_does_not_hand_out_secrets_of_the_environment(stored, monkeypatch, value):
    """In a name on the hub it would leave the machine. A key for a secret may hold one; messages never do."""
    monkeypatch.setenv("HF_TOKEN", "CANARY")
    given = value if value.startswith("[") else f"'{value}'"
    target = "_target_: transformers.AutoModelForCausalLM.from_pretrained"

    (problem,) = trust_problems(stored(f"{{{target}, pretrained_model_name_or_path: {given}}}"))

    assert "hands a secret of the environment to what is called" in problem.message
    assert "CANARY" not in str(problem)
    assert trust_problems(stored(f"{{{target}, api_key: '${{HF_TOKEN}}', other: '${{HOME}}/x'}}")) == []


@pytest.mark.parametrize("target", KNOWN)
def test_what_amcli_builds_needs_no_consent(stored, target):
    """Models, configurations, optimizers, losses and data sets of known packages."""
    config = stored(f"{{_target_: '{target}'}}")

    assert trust_problems(config) == []
    assert callable(resolve_target(target, config.origin(("model", "_target_")), "model._target_"))


@pytest.mark.parametrize(
    "target", ["torch.nn.attention._registry.f", "automodel_cli.engine.models._x.f", "antigravity.x"]
)
def test_nothing_private_or_unknown_is_imported_on_the_way(stored, target, monkeypatch):
    """The text is judged first: importing a module is running it."""
    imported = []
    monkeypatch.setattr(importlib, "import_module", lambda name: imported.append(name))

    with pytest.raises(ConfigError, match="code that amcli does not know"):
        resolve_target(target, stored("1").origin(("model",)), "model._target_")

    assert imported == []


@pytest.mark.parametrize(
    "argument",
    [
        *("trust_remote_code: true", "trust_remote_code: [true]", "trust_remote_code: {a: true}"),
        *("trust_remote_code: 'yes'", "trust_remote_code: 1", "trust_remote_code: 0", "trust_remote_code: []"),
        *("trust_remote_code: {}", "trust_remote_code: ''", "trust_remote_code: [[{a: [1]}]]"),
        *("trust_remote_code: '${AMCLI_NOT_SET,true}'", "trust_remote_code: '${AMCLI_NOT_SET,[true]}'"),
        *("trust_remote_code: '${AMCLI_IS_SET}'", "trust_remote_code: 'x${AMCLI_NOT_SET,y}'"),
        *("trust_remote_code: {_target_: torch.nn.Identity}", "more: [{trust_remote_code: true}]"),
        *("more: {deep: [[{x: {trust_remote_code: [false]}}]]}", "_trust_remote_code: true"),
        *("weights_only: false", "weights_only: 0", "weights_only: []", "weights_only: '${AMCLI_NOT_SET,false}'"),
        *("use_safetensors: false", "use_safetensors: 0", "model_kwargs: {use_safetensors: false}"),
        *("attn_implementation: someone/kernel", "attn_implementation: 'someone/kernel@v1:f'"),
        *("attn_implementation: 'paged|someone/kernel'", "attn_implementation: {text_config: someone/kernel}"),
        *("_attn_implementation: someone/kernel", "_attn_implementation_internal: a/b", "attn_implementation: ['a/b']"),
        *("experts_implementation: someone/kernel", "experts_implementation: {'': a/b}", "use_kernels: true"),
        *("allow_all_kernels: true", "kernel_config: {kernel_mapping: {}}", "quantization_config: {quant_method: x}"),
        *("backbone_kwargs: {trust_remote_code: true}", "adapter_kwargs: {revision: x}", "gguf_file: x.gguf"),
        *("custom_generate: a/b", "code_revision: main", "cache_dir: /tmp/x", "offload_folder: /tmp/x"),
    ],
)
@pytest.mark.parametrize("place", ["outside", "inside"])
def test_a_checkpoint_cannot_consent_to_more_code(stored, argument, place, monkeypatch):
    """Neither in the arguments of a target nor in those of a target inside it, in whatever form it is written."""
    monkeypatch.setenv("AMCLI_IS_SET", "{a: true}")
    parts = (f", {argument}", "") if place == "inside" else ("", f", {argument}")
    config = stored(FROM_CONFIG % parts)

    (problem,) = trust_problems(config)
    with pytest.raises(ConfigError) as caught:
        instantiate(config, "model")

    assert "a checkpoint's configuration sets it to" in problem.message
    assert str(caught.value) == str(problem)


@pytest.mark.parametrize(
    "argument",
    [
        *("trust_remote_code: false", "trust_remote_code: null", "attn_implementation: eager"),
        *("attn_implementation: '${AMCLI_NOT_SET,sdpa}'", "dtype: bfloat16"),
    ],
)
def test_what_runs_no_more_code_is_no_question(stored, argument):
    """Exactly false and null, and the attention that transformers itself has."""
    assert trust_problems(stored(FROM_CONFIG % ("", f", {argument}"))) == []


def test_all_that_needs_consent_is_said_at_once(stored):
    """In one error, before any part is built."""
    config = stored("{_target_: os.system, a: {_target_: 'mine.py:f'}, b: {trust_remote_code: true}}")

    with pytest.raises(ConfigError) as caught:
        instantiate(config, "model")

    assert [problem.message.partition(":")[0] for problem in caught.value.problems] == [
        "model._target_",
        "model.a._target_",
        "model.b.trust_remote_code",
    ]


@pytest.mark.parametrize("target", ["os.getcwd", "functools.partial", "logging.os.getcwd", "builtins.dict"])
def test_in_the_users_own_file_code_is_the_users(stored, target):
    """There is no list of forbidden names: any file of the user's may run anyway."""
    config = stored(f"{{_target_: {target}}}", kind="file")

    assert trust_problems(config) == []
    assert callable(bind(config, "model")[0])


@pytest.fixture
def with_code(tmp_path, monkeypatch):
    """A model directory whose `auto_map` names code beside it, which leaves a trace if it runs."""
    trace = tmp_path / "ran"
    directory = tmp_path / "hub"
    directory.mkdir()
    (directory / "code.py").write_text(f"open({str(trace)!r}, 'w').close()\n")
    auto_map = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M", "AutoTokenizer": ["code.T", None]}
    (directory / "config.json").write_text(json.dumps({"model_type": "zzz", "auto_map": auto_map}))
    (directory / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto_map, "tokenizer_class": "T"}))
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("a question on standard input"))
    yield directory
    assert not trace.exists()


@pytest.mark.parametrize("name", ["AutoModelForCausalLM", "AutoConfig", "AutoTokenizer"])
@pytest.mark.parametrize("more", ["", ", trust_remote_code: null"])
@pytest.mark.parametrize("kind", ["file", "checkpoint"])
def test_code_beside_weights_is_neither_run_nor_asked_about(stored, with_code, name, more, kind):
    """Of the user's own configuration, too, unless it says `trust_remote_code: true`."""
    text = f"{{_target_: transformers.{name}.from_pretrained, pretrained_model_name_or_path: {with_code}{more}}}"

    with pytest.raises((ValueError, ConfigError), match="custom code"):
        instantiate(stored(text, kind), "model")


def test_a_call_within_transformers_does_not_ask_either(stored, with_code):
    """A configuration may load another by itself, without passing on what it was told."""
    instantiate(stored(FROM_CONFIG % ("", "")), "model")
    from transformers import AutoConfig

    with pytest.raises(ValueError, match="custom code"):
        AutoConfig.from_pretrained(with_code)


@pytest.mark.parametrize("where", ["prep", "export", "stream"])
def test_a_tokenizer_that_is_code_is_not_run(with_code, where, tmp_path):
    """By `prep --tokenizer`, `sample --tokenizer`, an export, and a stream of texts."""
    from automodel_cli.engine.data.text_stream import TokenizedTextStream
    from automodel_cli.engine.exchange.export_files import write_tokenizer
    from automodel_cli.engine.prep.load_tokenizer import load_tokenizer
    from automodel_cli.errors import DataError

    load = {
        "prep": lambda: load_tokenizer(str(with_code)),
        "export": lambda: write_tokenizer(tmp_path, str(with_code), None, None),
        "stream": lambda: TokenizedTextStream([], str(with_code), seq_len=4),
    }[where]

    with pytest.raises((DataError, ValueError), match="code"):
        load()


class Trace:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("more", ["", ", use_safetensors: false"])
def test_pickled_weights_of_a_model_directory_run_nothing(stored, tmp_path, more):
    """They are read with `weights_only`, in the user's own configuration as well."""
    import torch
    from transformers import LlamaConfig

    trace = tmp_path / "ran"
    directory = tmp_path / "hf"
    LlamaConfig(
        vocab_size=17, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    ).save_pretrained(directory)
    torch.save({"x": Trace(trace)}, directory / "pytorch_model.bin")
    text = "{_target_: transformers.AutoModelForCausalLM.from_pretrained, pretrained_model_name_or_path: %s%s}"

    with pytest.raises(Exception, match=r"(?i)weights.?only"):
        instantiate(stored(text % (directory, more), "file"), "model")

    assert not trace.exists()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose configuration names the user's own file, and what its checkpoint holds."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "mine.py").write_text("def build(n=1): return dict(n=n)\n")
    checkpoint = tmp_path / "run/step_000003"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.yaml").write_text(f"model: {{_target_: '{tmp_path}/mine.py:build', n: 2}}\n")
    (tmp_path / "mine.yaml").write_text("model: {_target_: 'mine.py:build', n: 2}\n")
    return checkpoint


def test_what_was_started_with_c_goes_on_without_consent(run, tmp_path):
    """The same file in the same directory: nothing is asked."""
    assert len(trust_problems(read_configs([run]))) == 1

    assert remember_code(read_configs([tmp_path / "mine.yaml"]), run.parent) is None

    assert trust_problems(read_configs([run])) == []
    assert bind(read_configs([run]), "model")[1] == {"n": 2}


def test_a_changed_file_asks_again_and_is_listed(run, tmp_path):
    """With its name, its present hash, and that it changed."""
    remember_code(read_configs([tmp_path / "mine.yaml"]), run.parent)
    (tmp_path / "mine.py").write_text("def build(n=1): return 'changed'\n")

    (problem,) = trust_problems(read_configs([run]))

    assert "it changed since this run was started here" in problem.message
    assert f"{tmp_path / 'mine.py'}, SHA-256 " in problem.message
    assert "--trust-config" in problem.help


def test_a_checkpoint_from_elsewhere_asks(run, tmp_path):
    """Also a copy of the user's own run, and one that a link leads to."""
    remember_code(read_configs([tmp_path / "mine.yaml"]), run.parent)
    other = tmp_path / "other/step_000003"
    other.mkdir(parents=True)
    (other / "config.yaml").write_text((run / "config.yaml").read_text())
    (run.parent / "step_000004").symlink_to(other)

    assert len(trust_problems(read_configs([other]))) == 1
    assert len(trust_problems(read_configs([run.parent / "step_000004"]))) == 1


def test_what_is_remembered_covers_nothing_else_in_that_directory(run, tmp_path):
    """Another target of a checkpoint that was put there is asked about, and so is an argument."""
    remember_code(read_configs([tmp_path / "mine.yaml"]), run.parent)
    text = f"model: {{_target_: '{tmp_path}/mine.py:build', a: {{_target_: os.system}}, trust_remote_code: [true]}}"
    (run / "config.yaml").write_text(text)

    assert len(trust_problems(read_configs([run]))) == 2


def test_an_argument_that_was_started_with_c_is_remembered_with_all_others_of_its_section(run, tmp_path):
    """`trust_remote_code` for one directory says nothing about another."""
    text = "model: {_target_: transformers.AutoModelForCausalLM.from_pretrained, trust_remote_code: true, p: %s}"
    (tmp_path / "mine.yaml").write_text(text % "one")
    remember_code(read_configs([tmp_path / "mine.yaml"]), run.parent)

    (run / "config.yaml").write_text(text % "one")
    same = trust_problems(read_configs([run]))
    (run / "config.yaml").write_text(text % "two")
    other = trust_problems(read_configs([run]))

    assert (same, len(other)) == ([], 1)


def test_a_checkpoints_file_is_data_however_it_is_named(run):
    """`-c DIR/config.yaml`, or a link to it, is the checkpoint."""
    (run / "model").mkdir()
    (run / "manifest.json").write_text("{}")
    (run.parent / "mine.yaml").symlink_to(run / "config.yaml")

    for path in (run / "config.yaml", run.parent / "mine.yaml"):
        assert read_configs([path]).origin(("model", "_target_")).kind == "checkpoint"
    assert read_configs([run / "config.yaml"], trust=True).origin(("model",)).kind == "file"


def test_only_objects_of_known_kinds_are_buildable():
    """An alias in a known module, or a class of another kind there, is judged by what it is."""
    import torch

    torch.nn.amcli_alias = os.system
    try:
        assert not is_buildable(torch.nn.amcli_alias)
    finally:
        del torch.nn.amcli_alias
    assert not is_buildable(torch.nn.Parameter)
    assert is_buildable(torch.nn.Linear)
    assert "torch" in sys.modules


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("{_target_: torch.nn.Conv2d, in_channels: 3, out_channels: 2, kernel_size: 1, groups: 2}", "ValueError"),
        ("{_target_: torch.nn.Embedding, num_embeddings: 1000000000000, embedding_dim: 1000000000000}", "RuntimeError"),
        ("{_target_: transformers.AutoModelForCausalLM.from_pretrained, pretrained_model_name_or_path: ./no}", "Error"),
    ],
)
def test_what_a_checkpoint_describes_wrongly_is_no_error_in_the_users_code(stored, model, reason):
    """A known class that cannot be built so is named with key and place, and the exit code is not 1."""
    with pytest.raises(ConfigError, match=rf"model\._target_: it cannot be built .*{reason}") as caught:
        instantiate(stored(model), "model")

    assert "config.yaml:1:19" in str(caught.value.where)


def test_an_optimizer_that_a_checkpoint_describes_wrongly_is_no_error_in_the_users_code(stored):
    """What is built later than its section is read has the same rule."""
    config = from_parsed(parse_yaml("optimizer: {_target_: torch.optim.AdamW}", source="c.yaml", kind="checkpoint"))

    with (
        pytest.raises(ConfigError, match=r"optimizer\._target_: it cannot be built .*RuntimeError: both") as caught,
        building(torch.optim.AdamW, {}, config, ("optimizer",)),
    ):
        raise RuntimeError("both")

    assert "c.yaml:1:" in str(caught.value.where)


@pytest.mark.parametrize("kind", ["checkpoint", "file"])
def test_a_model_of_a_thousand_million_layers_is_refused(stored, kind, monkeypatch):
    """Building it would take all time and memory; the bound is said, and counted anew for each model."""
    monkeypatch.setattr("automodel_cli.engine.config.instantiate.MAX_MODULES", 100)
    text = "{_target_: automodel_cli.engine.models.gpt2.build_gpt2_model, vocab_size: 17, n_positions: 8, n_embd: 8, "

    with pytest.raises(ConfigError, match="more than 100 modules"):
        instantiate(stored(text + "n_head: 2, n_layer: 1000000000}", kind), "model")

    assert instantiate(stored(text + "n_head: 2, n_layer: 1}", kind), "model") is not None
