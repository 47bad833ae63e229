"""A model's weights to and from the names and layout that Hugging Face tools read.

Both directions are exact: a checkpoint that is written and read again has equal
weights by hash. Tied weights are written once, since safetensors refuses shared memory. Refused
are tensors of another model: other names, other shapes, types that would lose bits, biases that
the model has no place for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from automodel_cli.engine.config.suggest import hint
from automodel_cli.engine.distributed.module_tree import own_tensors
from automodel_cli.engine.distributed.region import LazyTensorSource, Part, Region
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


def export_model(
    model: nn.Module, bos_id: int | None = None, state: Mapping[str, torch.Tensor] | None = None
) -> ExportedModel:
    """The weights and the configuration of a model, as a checkpoint holds them.

    Our GPT-2 takes the layout of `transformers.GPT2LMHeadModel`; a Hugging Face model has its own
    names and configuration already; any other module keeps the names of its state dict.

    Args:
        model: Its tensors are not copied where their layout fits: write them before the next step.
        bos_id: Token that begins and ends documents, for the `config.json` of our GPT-2; a model
            does not know its tokenizer.
        state: The model's whole tensors, a tied one under its first name only, where the model itself
            holds parts of them; None takes the model's own.

    Raises:
        CheckpointError: The state dict holds something that is not a tensor.
    """
    tensors = _apart({name: transposed(model, name, tensor) for name, tensor in (state or own_tensors(model)).items()})
    return ExportedModel({**tensors, **_added(model)}, model_config(model, bos_id))


def export_parts(model: nn.Module, parts: Iterable[Part], *, is_first: bool) -> list[Part]:
    """One rank's parts of a model, under the names and in the layout of `export_model`.

    Args:
        model: On its ranks.
        parts: What this rank holds of its whole tensors.
        is_first: Whether this rank adds what only the checkpoint has.
    """
    found = []
    for part in parts:
        tensor = transposed(model, part.name, part.tensor)
        # The region is transposed along with the content.
        region = part.region if tensor is part.tensor else part.region.transposed()
        found.append(Part(part.name, region, tensor))
    added = _added(model) if is_first else {}
    return found + [Part(name, Region.whole(tensor.shape), tensor) for name, tensor in added.items()]


def model_config(model: nn.Module, bos_id: int | None = None) -> dict[str, Any] | None:
    """The contents of `config.json`, or None for a model that Hugging Face does not know.

    Args:
        model: May be parallelised.
        bos_id: As for `export_model`.
    """
    if isinstance(model, GPT2LMHeadModel):
        return _gpt2_config(model.config, model.transformer.wte.weight.dtype, bos_id)
    return _hugging_face_config(model)


def _added(model: nn.Module) -> dict[str, torch.Tensor]:
    """Hugging Face's GPT-2 always has biases; zeros are the same function."""
    if not isinstance(model, GPT2LMHeadModel) or model.config.bias:
        return {}
    dtype = model.transformer.wte.weight.dtype
    return {name: torch.zeros(size, dtype=dtype) for name, size in _bias_sizes(model.config).items()}


@torch.no_grad()
def import_tensors(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copies tensors as `export_model` wrote them into a model of the same architecture.

    Raises:
        CheckpointError: Names, shapes or types differ; all of them are listed, and the model is unchanged.
    """
    own, given = own_tensors(model), in_model_layout(model, tensors)
    for name, tensor in own.items():
        tensor.copy_(given[name])


def in_model_layout(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors as `export_model` wrote them, as a model of the same architecture holds them.

    Args:
        model: Whole; may be without content.
        tensors: By the names of a checkpoint.

    Raises:
        CheckpointError: Names, shapes or types differ; all of them are listed.
    """
    own = own_tensors(model)
    given = {name: transposed(model, name, tensor) for name, tensor in tensors.items()}
    refuse_another_architecture(model, own, given, tensors)
    return {name: given[name] for name in own}


def refuse_another_architecture(
    model: nn.Module,
    own: Mapping[str, torch.Tensor],
    given: Mapping[str, torch.Tensor],
    stored: Mapping[str, torch.Tensor] | LazyTensorSource,
) -> None:
    """Refuses weights of another architecture.

    Args:
        model: What they are for.
        own: Its tensors.
        given: The weights in its layout; their content is not looked at.
        stored: The same as they are stored.
    """
    problems = [
        problem for name, tensor in own.items() if name in given for problem in _differences(name, given[name], tensor)
    ]
    problems += [f"{name} is missing" for name in own if name not in given]
    problems += _surplus(model, own, stored)
    if problems:
        shown = "\n  ".join(problems[:8]) + (f"\n  and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise CheckpointError(
            f"the checkpoint is of another architecture:\n  {shown}",
            help="resume with the model section that the run was trained with",
        )


def transposed(model: nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor from the checkpoint's layout to the model's or back: the transpose is its own inverse."""
    return tensor.T if is_stored_transposed(model, name) else tensor


def is_stored_transposed(model: nn.Module, name: str) -> bool:
    """Whether a checkpoint holds the transpose of a tensor of the model."""
    return isinstance(model, GPT2LMHeadModel) and name.endswith(_TRANSPOSED)


def stored_tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that a checkpoint of this model holds, under their names there; none are copied.

    Args:
        model: Whole; may be without content.
    """
    return {name: transposed(model, name, tensor) for name, tensor in own_tensors(model).items()} | _added(model)


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same values contiguous, and copied where two names are different views of one memory."""
    taken: set[int] = set()
    apart: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        alone = tensor.contiguous()
        if alone.untyped_storage().data_ptr() in taken:
            alone = alone.clone()
        taken.add(alone.untyped_storage().data_ptr())
        apart[name] = alone
    return apart


def _differences(name: str, given: torch.Tensor, own: torch.Tensor) -> list[str]:
    """Reasons why `given` cannot be copied into `own` exactly."""
    if given.shape != own.shape:
        return [f"{name} is {tuple(given.shape)}, but the model has {tuple(own.shape)}"]
    if torch.promote_types(given.dtype, own.dtype) != own.dtype:
        return [f"{name} is {given.dtype}, which does not fit into the model's {own.dtype}"]
    return []


def _surplus(
    model: nn.Module, own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor] | LazyTensorSource
) -> list[str]:
    """Tensors that the model has no place for, without the zero biases that export adds to a GPT-2."""
    may_be_zero: dict[str, int] = {}
    if isinstance(model, GPT2LMHeadModel) and not model.config.bias:
        may_be_zero = _bias_sizes(model.config)
    problems = []
    for name in given:
        if name in may_be_zero and bool(given[name].any()):
            problems.append(f"{name} is not zero, but the model has no biases (bias: true has)")
        elif name not in own and name not in may_be_zero:
            problems.append(f"{name} is not in the model ({hint(name, own, noun='tensors')})")
    return problems


def _bias_sizes(config: GPT2Config) -> dict[str, int]:
    """Names and lengths of the biases of a GPT-2."""
    C = config.n_embd
    sizes = {"ln_1": C, "attn.c_attn": 3 * C, "attn.c_proj": C, "ln_2": C, "mlp.c_fc": 4 * C, "mlp.c_proj": C}
    blocks = {
        f"transformer.h.{layer}.{name}.bias": size for layer in range(config.n_layer) for name, size in sizes.items()
    }
    return {**blocks, "transformer.ln_f.bias": C}


def _gpt2_config(config: GPT2Config, dtype: torch.dtype, bos_id: int | None) -> dict[str, Any]:
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
        # Stated even if unknown: without them transformers takes 50256, which may be no token here.
        "bos_token_id": bos_id,
        "eos_token_id": bos_id,
        "dtype": str(dtype).removeprefix("torch."),
    }


def _hugging_face_config(model: Any) -> dict[str, Any] | None:
    # Asked by name: importing transformers only to ask is slow.
    if not any(base.__name__ == "PreTrainedModel" for base in type(model).__mro__):
        return None
    # FSDP2 gives a sharded model a class of its own, named after the model's.
    name = type(model).__name__.removeprefix("FSDP")
    # Stated by the weights: a configuration keeps the type that it was read with.
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return {**model.config.to_diff_dict(), "architectures": [name], "dtype": dtype}
