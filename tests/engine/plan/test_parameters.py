"""The count without building is the count of the model that is built, tensor by tensor."""

from __future__ import annotations

import json
import re

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from automodel_cli.engine.config.config import Config
from automodel_cli.engine.models.calling import call, logits_of
from automodel_cli.engine.plan.model_config import (
    CONFIG_CLASSES,
    DEFAULTS,
    GPT2_ALIASES,
    MODEL_CLASSES,
    MODEL_TYPES,
    UnknownModelError,
    model_shape,
)
from automodel_cli.engine.plan.parameters import Part, count_parameters, flops_per_token, parameter_tensors
from tests.engine.plan.conftest import AUTO, OURS, SMALL_GPT2, SMALL_LLAMA, built, hf, ours

QWEN2_HALF = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}
LLAMA3 = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
QWEN3_06 = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
}
# The configuration and what its model is known to have, where that is published.
SHAPES = {
    "gpt2 124M": (ours(vocab_size=50257, n_positions=1024, n_embd=768, n_layer=12, n_head=12), 124_439_808),
    "gpt2 xl": (ours(vocab_size=50257, n_positions=1024, n_embd=1600, n_layer=48, n_head=25), 1_557_611_200),
    "gpt2 without biases": (ours(**SMALL_GPT2, bias=False), None),
    "hf gpt2 by default": (hf("GPT2Config"), 124_439_808),
    "hf gpt2 untied": (hf("GPT2Config", **SMALL_GPT2, tie_word_embeddings=False), None),
    "hf gpt2 inner width": (hf("GPT2Config", **SMALL_GPT2, n_inner=50), None),
    "hf gpt2 by its class": (hf("GPT2Config", "transformers.GPT2LMHeadModel", **SMALL_GPT2), None),
    "llama 2 7B by default": (hf("LlamaConfig"), 6_738_415_616),
    "llama 3 8B": (hf("LlamaConfig", **LLAMA3), 8_030_261_248),
    "llama with all biases": (hf("LlamaConfig", **SMALL_LLAMA, attention_bias=True, mlp_bias=True), None),
    "llama with a head size": (hf("LlamaConfig", **SMALL_LLAMA, head_dim=24), None),
    "llama by its class": (hf("LlamaConfig", "transformers.LlamaForCausalLM.from_config", **SMALL_LLAMA), None),
    "qwen2 0.5B tied": (hf("Qwen2Config", **QWEN2_HALF, tie_word_embeddings=True), 494_032_768),
    "qwen2 0.5B untied": (hf("Qwen2Config", **QWEN2_HALF), None),
    "qwen2 by default": (hf("Qwen2Config"), None),
    "qwen3 0.6B": (hf("Qwen3Config", **QWEN3_06, tie_word_embeddings=True), 596_049_920),
    "qwen3 by default": (hf("Qwen3Config"), None),
    "qwen3 with biases": (hf("Qwen3Config", **SMALL_LLAMA, attention_bias=True), None),
}


def real_tensors(config: Config) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in built(config).named_parameters()}


def listed_tensors(config: Config) -> dict[str, tuple[int, ...]]:
    """The list of a shape with the blocks' tensors written out."""
    listed = {}
    for tensor in parameter_tensors(model_shape(config)):
        for number in range(tensor.copies):
            listed[tensor.name.replace("*", str(number))] = tensor.shape
    return listed


@pytest.mark.parametrize(("config", "published"), SHAPES.values(), ids=SHAPES)
def test_every_tensor_of_the_real_model_is_listed_with_its_shape(config, published):
    """Names and shapes are those of the model on the meta device; the total is the published one."""
    real = real_tensors(config)

    counts = count_parameters(parameter_tensors(model_shape(config)))

    assert listed_tensors(config) == real
    assert counts.total == sum(parameter.numel() for parameter in built(config).parameters())
    assert published in (None, counts.total)


head_counts = st.sampled_from([(1, 1), (2, 1), (4, 2), (4, 4), (6, 3)])
sizes = st.integers(1, 40)


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(["LlamaConfig", "Qwen2Config", "Qwen3Config"]),
    head_counts,
    sizes,
    sizes,
    st.integers(1, 3),
    st.integers(1, 6),
    st.sampled_from([None, 2, 8]),
    st.booleans(),
    st.booleans(),
)
def test_any_small_shape_of_the_llama_family_is_counted(
    config_class, heads, vocab_size, inner, layers, width, head_dim, is_tied, has_bias
):
    """Grouped heads, sizes of heads, tied and untied, with and without biases."""
    options = {} if config_class == "Qwen2Config" else {"attention_bias": has_bias}
    if config_class != "Qwen2Config" and head_dim is not None:
        options["head_dim"] = head_dim
    config = hf(
        config_class,
        vocab_size=vocab_size,
        hidden_size=2 * width * heads[0],
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        max_position_embeddings=16,
        tie_word_embeddings=is_tied,
        **options,
    )

    assert listed_tensors(config) == real_tensors(config)


@settings(max_examples=15, deadline=None)
@given(sizes, sizes, st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.booleans(), st.booleans())
def test_any_small_shape_of_gpt2_is_counted(vocab_size, positions, layers, heads, head_size, flag, is_ours):
    """Ours with and without biases, that of transformers tied and untied."""
    shape = {
        "vocab_size": vocab_size,
        "n_positions": positions,
        "n_layer": layers,
        "n_head": heads,
        "n_embd": heads * head_size,
    }
    config = ours(**shape, bias=flag) if is_ours else hf("GPT2Config", **shape, tie_word_embeddings=flag)

    assert listed_tensors(config) == real_tensors(config)


def test_the_parts_of_a_count_are_all_of_it():
    """Embedding, positions, blocks, norm and head; a tied embedding is a factor of products, positions are not."""
    counts = count_parameters(parameter_tensors(model_shape(SHAPES["gpt2 124M"][0])))

    assert counts.embedding + counts.positions + counts.blocks + counts.norm + counts.head == counts.total
    assert (counts.head, counts.positions) == (0, 1024 * 768)
    assert counts.products == 50257 * 768 + 12 * 12 * 768**2


@pytest.mark.parametrize(("name", "family"), CONFIG_CLASSES.items())
def test_the_defaults_are_those_of_the_installed_classes(name, family):
    """Each size that a configuration may leave out; None is what the class computes from the others."""
    config = getattr(transformers, name)()

    for key, value in DEFAULTS[family].items():
        if value is not None:
            assert getattr(config, key) == value, key
    assert MODEL_TYPES[config.model_type] is family


def test_the_other_names_are_those_of_the_installed_class():
    """GPT2Config reads `hidden_size` as `n_embd`."""
    assert transformers.GPT2Config.attribute_map == GPT2_ALIASES


def test_the_model_classes_are_built_from_these_configurations():
    """LlamaForCausalLM takes a LlamaConfig, and so on."""
    for model_class, family in MODEL_CLASSES.items():
        assert CONFIG_CLASSES[getattr(transformers, model_class).config_class.__name__] is family


def local_config(directory, **values):
    (directory / "config.json").write_text(json.dumps(values))
    config = {"_target_": "transformers.AutoConfig.from_pretrained", "pretrained_model_name_or_path": str(directory)}
    return Config({"model": {"_target_": AUTO, "config": config}})


def test_a_local_config_json_is_read_and_overridden(tmp_path):
    """As transformers does it: the keys of the section win over those of the file."""
    stored = transformers.LlamaConfig(**SMALL_LLAMA).to_dict()
    config = local_config(tmp_path, **stored)
    config.values["model"]["config"]["num_hidden_layers"] = 3

    shape = model_shape(config)

    assert listed_tensors(config) == real_tensors(config)
    assert shape.num_layers == 3


@pytest.mark.parametrize(
    "stored",
    [
        {"model_type": "gpt2", "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4},
        {"model_type": "qwen2", **SMALL_LLAMA, "head_dim": 16},
        {"model_type": "qwen3", **SMALL_LLAMA, "head_dim": 24, "num_key_value_heads": 1},
    ],
    ids=["gpt2 by other names", "qwen2 with a head size", "qwen3"],
)
def test_a_config_json_means_what_transformers_takes_it_for(tmp_path, stored):
    """Names of the attribute map, and sizes that a class has no field for."""
    config = local_config(tmp_path, **stored)

    assert listed_tensors(config) == real_tensors(config)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (None, "no section `model`"),
        ({"_target_": "my_models.py:build", "n_layer": 2}, "without building: my_models.py:build"),
        ({"_target_": "transformers.AutoModelForCausalLM.from_pretrained"}, "without building"),
        ({"_target_": "transformers.BloomForCausalLM", "config": {"_target_": "transformers.BloomConfig"}}, "Bloom"),
        ({"_target_": AUTO, "config": {"_target_": "transformers.BloomConfig"}}, "transformers.BloomConfig"),
        ({"_target_": AUTO}, "model.config is no section"),
        ({"_target_": "transformers.LlamaForCausalLM", "config": {"_target_": "transformers.GPT2Config"}}, "of GPT-2"),
        ({"_target_": AUTO, "config": {"_target_": "transformers.GPT2Config", "n_embd": "wide"}}, "n_embd is 'wide'"),
        ({"_target_": AUTO, "config": {"_target_": "transformers.GPT2Config", "add_cross_attention": True}}, "second"),
        ({"_target_": OURS, **SMALL_GPT2, "num_experts": 4}, "num_experts"),
        ({"_target_": OURS, "vocab_size": 5}, "n_positions is None"),
    ],
)
def test_what_cannot_be_told_is_not_guessed(model, reason):
    """The error names what is not known."""
    with pytest.raises(UnknownModelError, match=re.escape(reason)):
        model_shape(Config({"model": model}))


@pytest.mark.parametrize("text", [None, "[]", "{", '{"model_type": "bloom"}', "{}", "\x00"])
def test_a_config_json_that_says_nothing_is_unknown(tmp_path, text):
    """Missing, damaged, of another kind."""
    config = local_config(tmp_path)
    path = tmp_path / "config.json"
    path.unlink() if text is None else path.write_text(text)

    with pytest.raises(UnknownModelError):
        model_shape(config)


def test_the_split_dimensions_are_those_of_the_plans_of_the_models():
    """What tensor parallelism splits by columns is split in its first dimension here, by rows in its second."""
    for name in ("LlamaConfig", "Qwen2Config", "Qwen3Config"):
        config = hf(name, **SMALL_LLAMA)
        plan = getattr(transformers, name).base_model_tp_plan
        for tensor in parameter_tensors(model_shape(config)):
            style = plan.get(tensor.name.removeprefix("model.").removesuffix(".weight"))
            if tensor.part is Part.BLOCKS and tensor.name.endswith(".weight"):
                assert tensor.tp_dim == {"colwise": 0, "rowwise": 1}.get(style or ""), tensor.name


CONFIGS = {
    "ours": ours(**SMALL_GPT2),
    "hf gpt2": hf("GPT2Config", **SMALL_GPT2, tie_word_embeddings=False),
    "llama": hf("LlamaConfig", **SMALL_LLAMA),
    "qwen2 tied": hf("Qwen2Config", **SMALL_LLAMA, tie_word_embeddings=True),
    "qwen3": hf("Qwen3Config", **SMALL_LLAMA, head_dim=16),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_formula_is_what_torch_counts(config):
    """Every matrix product of forward and backward; attention in its plain form, which computes nothing twice."""
    B, T = 2, 24
    model = built(config, "cpu").train()
    ids_BT = torch.zeros(B, T, dtype=torch.int64)

    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        logits_of(call(model, {"input_ids": ids_BT})).sum().backward()

    assert flops_per_token(model_shape(config), T) * B * T == counter.get_total_flops()
