"""What source tells about a target, held against what Python itself says after importing it."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap

import pytest

from automodel_cli.engine.config.origin import DEFAULT, Origin
from automodel_cli.engine.config.source_modules import Sources
from automodel_cli.engine.config.target import resolve_target, static_target
from automodel_cli.engine.config.target_errors import Signature, signature_of
from automodel_cli.errors import ConfigError

# Real code in all styles: classes over several files, re-exports, lazy modules, wrappers, dataclasses.
LIBRARIES = [
    "argparse",
    "collections",
    "contextlib",
    "decimal",
    "email.message",
    "enum",
    "functools",
    "json",
    "pathlib",
    "random",
    "statistics",
    "string",
    "tempfile",
    "typing",
    "numpy.random",
    "rich.table",
    "torch.nn",
    "torch.nn.functional",
    "torch.optim",
    "torch.optim.lr_scheduler",
    "torch.utils.data",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.optimization",
    "yaml",
    "automodel_cli.engine.data.nanogpt_dataset",
    "automodel_cli.engine.loss.masked_ce",
    "automodel_cli.engine.models.gpt2",
    "automodel_cli.engine.shards.manifest",
    "automodel_cli.engine.checkpoint.snapshot",
]


def targets_in(module):
    """(import path, object) of everything callable in a module, and of the methods of its classes."""
    for name, found in sorted(vars(module).items()):
        if not name.startswith("__") and callable(found):
            yield f"{module.__name__}.{name}", found
            for inner in sorted(vars(found)) if isinstance(found, type) else []:
                method = getattr(found, inner, None)
                # Other packages hang methods on classes when they are imported; nobody's source shows that.
                is_own = getattr(method, "__module__", None) in (found.__module__, None)
                if not inner.startswith("_") and callable(method) and is_own:
                    yield f"{module.__name__}.{name}.{inner}", method


@pytest.mark.parametrize("name", LIBRARIES)
def test_what_is_told_is_what_importing_shows(name):
    """Nothing that exists is called missing, and every signature given is that of `inspect`."""
    module, sources = importlib.import_module(name), Sources(is_bounded=False)

    found = {target: (static_target(target, DEFAULT, "x", sources), it) for target, it in targets_in(module)}

    told = {target: (result.signature, it) for target, (result, it) in found.items() if result.signature}

    assert found
    wrong = {target: (said, signature_of(it)) for target, (said, it) in told.items() if said != signature_of(it)}
    assert wrong == {}


@pytest.mark.parametrize(
    ("target", "required", "known"),
    [
        ("torch.optim.AdamW", {"params"}, {"lr", "betas", "weight_decay", "fused"}),
        ("torch.optim.SGD", {"params"}, {"lr", "momentum"}),
        ("torch.nn.Linear", {"in_features", "out_features"}, {"bias"}),
        ("torch.optim.Muon", {"params"}, {"lr", "momentum", "ns_steps"}),
        ("torch.nn.CrossEntropyLoss", set(), {"ignore_index", "label_smoothing"}),
        ("transformers.LlamaConfig", set(), {"hidden_size", "num_key_value_heads", "bos_token_id"}),
        ("transformers.Qwen2Config", set(), {"hidden_size", "sliding_window"}),
        ("transformers.Qwen3Config", set(), {"hidden_size", "head_dim"}),
        ("transformers.GPT2Config", set(), {"n_embd", "n_layer", "attn_pdrop"}),
        ("transformers.MixtralConfig", set(), {"num_local_experts"}),
        ("transformers.GemmaConfig", set(), {"hidden_size"}),
        ("transformers.LlamaForCausalLM", {"config"}, set()),
        ("transformers.GPT2LMHeadModel._from_config", {"config"}, set()),
        ("transformers.AutoModelForCausalLM.from_config", {"config"}, set()),
        ("transformers.AutoModelForCausalLM.from_pretrained", {"pretrained_model_name_or_path"}, set()),
        ("transformers.AutoConfig.from_pretrained", {"pretrained_model_name_or_path"}, set()),
        ("transformers.AutoConfig.for_model", {"model_type"}, set()),
        ("automodel_cli.engine.data.nanogpt_dataset.NanogptDataset", {"file_pattern", "seq_len"}, {"shuffle"}),
        ("automodel_cli.engine.loss.masked_ce.MaskedCrossEntropy", set(), set()),
    ],
)
def test_what_people_name_most_is_known(target, required, known):
    """The parts of an ordinary run get a signature, not an excuse."""
    found = static_target(target, DEFAULT, "x").signature

    assert found is not None
    assert found.required == required
    assert known <= set(found.names)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("math.sqrt", "not written in Python"),
        ("builtins.dict", "built into Python"),
        ("collections.OrderedDict", "compiled, not written in Python"),
        ("torch.optm.AdamW", "did you mean `optim`?"),
        ("torch.Tensor", "its base `torch._C.TensorBase`"),
    ],
)
def test_what_cannot_be_told_says_why(target, reason):
    """Unchecked, never guessed."""
    found = static_target(target, DEFAULT, "x")

    assert found.signature is None
    assert reason in found.unchecked


@pytest.mark.parametrize(
    "target",
    [
        "no_such_package.build",
        "torch.optim.AdamWW",
        "torch.nn.Linera",
        "torch.optim.adamw",
        "json.tool.maim",
        "string.Template.substitut",
        "pathlib.Path.hom",
        "just_a_word",
        "two words.x",
        "automodel_cli.engine.models.gpt2.build_gpt_model",
        "mine.py:absent",
        "absent.py:build",
    ],
)
def test_what_is_missing_gives_the_error_of_the_import(target, tmp_path):
    """The parent process and the run use the same words, and both offer the nearest name."""
    (tmp_path / "mine.py").write_text("def build(): ...\n")
    origin = Origin("file", str(tmp_path / "run.yaml"), 2, 12)

    with pytest.raises(ConfigError) as imported:
        resolve_target(target, origin, "model._target_")
    with pytest.raises(ConfigError) as read:
        static_target(target, origin, "model._target_")

    words = "has no", "is not installed", "cannot be called", "there is no file", "neither an import path"
    assert [word in str(read.value) for word in words] == [word in str(imported.value) for word in words]
    assert any(word in str(read.value) for word in words)
    assert read.value.where == imported.value.where
    assert (read.value.help or "")[:12] == (imported.value.help or "")[:12]


def test_a_misspelt_name_of_transformers_is_found_among_its_lazy_names():
    """Its modules declare their names to type checkers, and that declaration is followed."""
    with pytest.raises(ConfigError, match="the module `transformers` has no `GPT2Confg`") as caught:
        static_target("transformers.GPT2Confg", DEFAULT, "x")

    assert caught.value.help == "did you mean `GPT2Config`?"


@pytest.mark.parametrize("name", ["LlamaConfig", "Qwen3Config", "GPT2Config", "MixtralConfig", "LlamaForCausalLM"])
def test_a_class_of_transformers_takes_what_it_takes_when_imported(name):
    """Though decorators and a base make dataclasses of its configurations."""
    found = static_target(f"transformers.{name}", DEFAULT, "x").signature

    assert found == signature_of(getattr(importlib.import_module("transformers"), name))


@pytest.mark.parametrize("name", ["from_confg", "from_pretraned"])
def test_a_misspelt_class_method_of_transformers_is_absent(name):
    """Though the class is put through a function that gives it back."""
    with pytest.raises(ConfigError, match=f"the object `AutoModelForCausalLM` has no `{name}`") as caught:
        static_target(f"transformers.AutoModelForCausalLM.{name}", DEFAULT, "x")

    assert caught.value.help == f"did you mean `{name.replace('fg', 'fig').replace('ned', 'ined')}`?"


def test_nothing_is_imported_or_run(package, tmp_path):
    """A package whose every file would leave a trace, and its parents, leave none."""
    trace = tmp_path / "trace"
    loud = f"open({str(trace)!r}, 'w')\n"
    name = package(__init__=loud, sub__in____init__=loud, sub__in__leaf=f"{loud}def build(a): ...\n")
    before = set(sys.modules)

    found = static_target(f"{name}.sub.leaf.build", DEFAULT, "x")

    assert found.signature == Signature(("a",), frozenset("a"))
    assert not trace.exists()
    assert not {module for module in set(sys.modules) - before if module.startswith(name)}


def test_looking_up_torch_and_transformers_loads_neither():
    """In a fresh interpreter."""
    code = """
        import sys
        from automodel_cli.engine.config.origin import DEFAULT
        from automodel_cli.engine.config.target import static_target
        for target in ("torch.optim.AdamW", "transformers.GPT2Config", "torch.nn.functional.gelu"):
            static_target(target, DEFAULT, "x")
        print({"torch", "transformers", "numpy"} & set(sys.modules))
        """

    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"


def test_more_source_than_a_check_may_read_is_left_unchecked(mine, monkeypatch):
    """A hostile file costs a bounded amount of work."""
    monkeypatch.setattr("automodel_cli.engine.config.source_modules.MAX_FILE_BYTES", 10)

    assert "too much source" in mine("def build(a): ...  # long\n", "build").unchecked
