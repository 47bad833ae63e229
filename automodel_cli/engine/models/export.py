"""A model's weights to and from the names and layout that Hugging Face tools read.

Both directions move bits and change none: a checkpoint that is written and read again has equal
weights by hash. Shared tensors are written once, since safetensors refuses them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import nn

from automodel_cli.engine.config.suggest import hint
from automodel_cli.engine.models.gpt2 import GPT2Config, GPT2LMHeadModel
from automodel_cli.errors import CheckpointError

# Hugging Face's GPT-2 keeps these as `Conv1D`, whose weight is the transpose of `nn.Linear`'s.
_TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


@dataclass(frozen=True)
class ExportedModel:
    """A model as a checkpoint holds it.

    Args:
        tensors: Contiguous tensors by name, no two of them sharing memory.
        config: The contents of `config.json`, or None for a model that Hugging Face does not know.
    """

    tensors: dict[str, torch.Tensor]
    config: dict[str, Any] | None


def export_model(model: nn.Module) -> ExportedModel:
    """The weights and the configuration of a model, as a checkpoint holds them.

    Our GPT-2 takes the layout of `transformers.GPT2LMHeadModel`; a Hugging Face model has its own
    names and configuration already; any other module keeps the names of its state dict.
    """
    tensors = {name: _turned(model, name, tensor).contiguous() for name, tensor in _without_duplicates(model).items()}
    if not isinstance(model, GPT2LMHeadModel):
        return ExportedModel(tensors, _hugging_face_config(model))
    if not model.config.bias:
        # Hugging Face's GPT-2 always has biases; zeros are the same function.
        tensors.update(_zero_biases(model.config, model.transformer.wte.weight.dtype))
    return ExportedModel(tensors, _gpt2_config(model.config))


@torch.no_grad()
def import_tensors(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copies tensors as `export_model` wrote them into a model of the same architecture.

    Raises:
        CheckpointError: Names or shapes differ; all of them are told, and the model is unchanged.
    """
    own = _without_duplicates(model)
    given = {name: _turned(model, name, tensor) for name, tensor in tensors.items()}
    ignored = _zero_biases(model.config, torch.float32) if _is_gpt2_without_bias(model) else {}
    problems = [
        f"{name} is {tuple(given[name].shape)}, but the model has {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in given and given[name].shape != tensor.shape
    ]
    problems += [f"{name} is missing" for name in own if name not in given]
    problems += [
        f"{name} is not in the model ({hint(name, own, noun='tensors')})"
        for name in given
        if name not in own and name not in ignored
    ]
    if problems:
        shown = "\n  ".join(problems[:8]) + (f"\n  and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise CheckpointError(
            f"the checkpoint is of another architecture:\n  {shown}",
            help="resume with the model section that the run was trained with",
        )
    for name, tensor in own.items():
        tensor.copy_(given[name])


def _turned(model: nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """From the checkpoint's layout to the model's or back: the transpose is its own inverse."""
    return tensor.T if isinstance(model, GPT2LMHeadModel) and name.endswith(_TRANSPOSED) else tensor


def _is_gpt2_without_bias(model: nn.Module) -> TypeGuard[GPT2LMHeadModel]:
    return isinstance(model, GPT2LMHeadModel) and not model.config.bias


def _without_duplicates(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict with each storage under its first name only; values share the model's memory."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        identity = (tensor.data_ptr(), tuple(tensor.shape))
        if tensor.numel() and identity in seen:
            continue
        seen.add(identity)
        tensors[name] = tensor
    return tensors


def _zero_biases(config: GPT2Config, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    C = config.n_embd
    sizes = {"ln_1": C, "attn.c_attn": 3 * C, "attn.c_proj": C, "ln_2": C, "mlp.c_fc": 4 * C, "mlp.c_proj": C}
    biases = {
        f"transformer.h.{layer}.{name}.bias": torch.zeros(size, dtype=dtype)
        for layer in range(config.n_layer)
        for name, size in sizes.items()
    }
    return {**biases, "transformer.ln_f.bias": torch.zeros(C, dtype=dtype)}


def _gpt2_config(config: GPT2Config) -> dict[str, Any]:
    """`config.json` of the equal `transformers.GPT2LMHeadModel`."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.n_positions,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "initializer_range": config.initializer_range,
        "attn_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "tie_word_embeddings": True,
        # In the vocabularies of amcli the last id is the one that begins and ends documents.
        "bos_token_id": config.vocab_size - 1,
        "eos_token_id": config.vocab_size - 1,
        "dtype": "float32",
    }


def _hugging_face_config(model: Any) -> dict[str, Any] | None:
    # Asked by name: importing transformers only to learn that a model is not one of its own is slow.
    if not any(base.__name__ == "PreTrainedModel" for base in type(model).__mro__):
        return None
    return {**model.config.to_diff_dict(), "architectures": [type(model).__name__]}
