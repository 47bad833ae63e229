"""Weights go out under Hugging Face names and come back unchanged, for our models and others'."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from automodel_cli.engine.models.export import export_model, import_tensors
from automodel_cli.engine.models.gpt2 import build_gpt2_model
from automodel_cli.errors import CheckpointError

SIZES = {"vocab_size": 31, "n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2}


class Tied(nn.Module):
    """A user's module whose head shares the embedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embed.weight


def tiny_llama():
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=31, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )


BUILDERS = {
    "gpt2": lambda: build_gpt2_model(**SIZES),
    "gpt2 without biases": lambda: build_gpt2_model(**SIZES, bias=False),
    "llama": tiny_llama,
    "a user's module": Tied,
}


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_export_and_import_are_inverse_bit_for_bit(build, tmp_path):
    """Through a safetensors file, which refuses shared memory and strided tensors."""
    torch.manual_seed(0)
    first, second = build(), build()
    save_file(export_model(first).tensors, tmp_path / "m.safetensors")

    import_tensors(second, export_model(first).tensors)

    for (name, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("name", ["gpt2", "gpt2 without biases", "llama"])
def test_transformers_loads_what_is_exported(name, tmp_path):
    """`from_pretrained` on the directory gives equal logits."""
    torch.manual_seed(0)
    model = BUILDERS[name]().eval()
    exported = export_model(model)
    save_file(exported.tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(exported.config))
    ids = torch.arange(8)[None]

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()

    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("bos_id", "dtype"), [(30, torch.float32), (None, torch.bfloat16)])
def test_config_json_states_the_tokens_and_the_type(bos_id, dtype):
    """Never transformers' defaults, which are those of another vocabulary."""
    config = export_model(build_gpt2_model(**SIZES).to(dtype), bos_id).config

    assert config["bos_token_id"] == config["eos_token_id"] == bos_id
    assert f"torch.{config['dtype']}" == str(dtype)


class Overlapping(nn.Module):
    """A user's module whose tensors are different views of one memory."""

    def __init__(self):
        super().__init__()
        memory = torch.arange(16.0).reshape(4, 4)
        self.register_buffer("whole", memory)
        self.register_buffer("rows", memory[:2])
        self.register_buffer("turned", memory.T)


def test_views_of_one_memory_are_written_each_with_its_own_values(tmp_path):
    """They are not tied: leaving one out would lose it, and safetensors refuses them as they are."""
    module = Overlapping()

    tensors = export_model(module).tensors
    save_file(tensors, tmp_path / "m.safetensors")

    assert set(tensors) == {"whole", "rows", "turned"}
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensors[name], tensor), name


class WithExtraState(nn.Linear):
    """A user's module with a state that is not a tensor."""

    def get_extra_state(self):
        return {"calls": 3}


def test_a_state_that_is_not_a_tensor_is_refused_when_saved():
    """With its name and its type."""
    with pytest.raises(CheckpointError, match="WithExtraState keeps _extra_state as dict"):
        export_model(WithExtraState(2, 2))


def test_biases_are_not_dropped_in_silence():
    """A model without biases takes the zeros that stand for none, and refuses others."""
    model = build_gpt2_model(**SIZES, bias=False)
    tensors = export_model(build_gpt2_model(**SIZES)).tensors
    import_tensors(model, tensors)

    with pytest.raises(CheckpointError, match=r"ln_f\.bias is not zero"):
        import_tensors(model, {**tensors, "transformer.ln_f.bias": torch.ones(8)})


def test_types_that_would_lose_bits_are_refused():
    """Weights in bf16 fit into fp32; the other way is another model."""
    wide, narrow = build_gpt2_model(**SIZES), build_gpt2_model(**SIZES).bfloat16()

    import_tensors(wide, export_model(narrow).tensors)
    assert torch.equal(wide.lm_head.weight, narrow.lm_head.weight.float())

    with pytest.raises(CheckpointError, match=r"wte\.weight is torch\.float32, which does not fit"):
        import_tensors(narrow, export_model(wide).tensors)


def test_another_architecture_is_refused_with_every_difference():
    """Names and shapes are told, and not one weight has changed."""
    torch.manual_seed(0)
    model = build_gpt2_model(**SIZES)
    before = model.transformer.wte.weight.clone()
    shallow = export_model(build_gpt2_model(**{**SIZES, "n_layer": 1}))
    deep = export_model(build_gpt2_model(**{**SIZES, "n_layer": 3}))
    other = export_model(build_gpt2_model(**{**SIZES, "n_layer": 1, "n_embd": 16}))

    with pytest.raises(CheckpointError) as caught:
        import_tensors(model, other.tensors)

    assert "more" in str(caught.value)
    assert "transformer.wte.weight is (31, 16), but the model has (31, 8)" in str(caught.value)
    with pytest.raises(CheckpointError, match=r"transformer\.h\.1\.ln_1\.weight is missing"):
        import_tensors(model, shallow.tensors)
    with pytest.raises(CheckpointError, match=r"transformer\.h\.2\.ln_1\.weight is not in the model"):
        import_tensors(model, deep.tensors)
    assert torch.equal(model.transformer.wte.weight, before)
