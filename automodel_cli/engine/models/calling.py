"""How the engine calls a model, and how it reads what a model returns.

A call has the token ids, and what else a batch holds and the model takes. Our GPT-2 takes `position_ids` and
`document_ids`. A Hugging Face model takes `position_ids`, and gets the borders of documents as an attention mask,
within its windows where it has some (document_attention.py); its key-value cache, which only generation uses, is off.
Any other module is given the token ids, and what its `forward` names.

Shapes: B batch, T sequence, V vocabulary.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from automodel_cli.engine.models.document_attention import document_blocks, masks_within_windows, window_of
from automodel_cli.engine.models.sizes import is_hugging_face
from automodel_cli.engine.protocols import OPTIONAL_INPUTS
from automodel_cli.errors import ConfigError

if TYPE_CHECKING:
    from automodel_cli.engine.protocols import Metrics


def call(model: nn.Module, batch: dict[str, torch.Tensor]) -> Any:
    """The model's output for a batch that is on its device.

    Args:
        model: The model, or a wrapper (compiled, data-parallel) around it.
        batch: `input_ids` (B, T), and where documents are packed `position_ids` (B, T), restarted
            at each document, and `document_ids` (B, T), equal within a document and non-decreasing.

    Raises:
        ConfigError: The batch holds borders of documents that the model would ignore.
    """
    inner = unwrapped(model)
    given = {name: batch[name] for name in OPTIONAL_INPUTS if name in batch}
    arguments = _hugging_face_arguments(inner, given) if is_hugging_face(inner) else _own_arguments(type(inner), given)
    return model(batch["input_ids"], **arguments)


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's module inside wrappers of torch, which keep it as `module` or `_orig_mod`."""
    while True:
        inner = model._modules.get("_orig_mod")
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def document_mask(document_ids_BT: torch.Tensor) -> torch.Tensor:
    """Causal mask within documents, (B, 1, T, T): true where a position may attend."""
    same_BTT = document_ids_BT[:, :, None] == document_ids_BT[:, None, :]
    return same_BTT.tril()[:, None]


def _hugging_face_arguments(model: nn.Module, given: dict[str, torch.Tensor]) -> dict[str, Any]:
    arguments: dict[str, Any] = {"use_cache": False} if _takes(type(model), "use_cache") else {}
    if "position_ids" in given:
        arguments["position_ids"] = given["position_ids"]
    if "document_ids" in given:
        implementation: Any = model.config._attn_implementation  # type: ignore[union-attr]  # of every PreTrainedModel
        if implementation not in ("sdpa", "eager", "flex_attention"):
            raise ConfigError(
                f"the borders of documents need a mask, which the attention `{implementation}` of "
                f"{type(model).__name__} does not take",
                help="attn_implementation: sdpa in the model section does, and so does flex_attention on a GPU",
            )
        arguments["attention_mask"] = _mask(model, implementation, given["document_ids"])
    return arguments


def _mask(model: nn.Module, implementation: str, document_ids: torch.Tensor) -> Any:
    """The document mask in the form that an attention implementation of transformers takes."""
    if window_of(model) is not None:
        return masks_within_windows(model, document_ids)
    if implementation == "flex_attention":
        return document_blocks(document_ids)
    mask = document_mask(document_ids)
    # Eager attention adds its mask; scaled-dot-product attention takes true and false.
    return mask if implementation == "sdpa" else _additive(mask, model)


def _additive(mask: torch.Tensor, model: nn.Module) -> torch.Tensor:
    dtype = next(model.parameters()).dtype
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def _own_arguments(kind: type[nn.Module], given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    ignored = [name for name in given if not _takes(kind, name)]
    if ignored:
        name = kind.__name__.removeprefix("FSDP")  # FSDP2 replaces the user's class by one of this name
        has_documents = "document_ids" in given
        raise ConfigError(
            f"the batches hold {' and '.join(ignored)}, but {name}.forward takes no such argument, so its "
            + ("attention would cross the borders of documents" if has_documents else "positions would be wrong"),
            help=f"add {', '.join(ignored)} to its forward, or train without "
            + ("packing and document mask" if has_documents else "context parallelism and positions in the data"),
        )
    return given


def _takes(kind: type[nn.Module], name: str) -> bool:
    """Whether `forward` names an argument."""
    return name in _parameters(kind.forward)


@functools.lru_cache(maxsize=32)
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


@dataclass
class CausalLMOutput:
    """The output of a forward pass.

    Args:
        logits: (B, T, V), before any softmax.
        metrics: Numbers to report; see `Metric`.
    """

    logits: torch.Tensor
    metrics: Metrics | None = None


def logits_of(output: Any) -> torch.Tensor:
    """The logits of a model's output: the tensor itself, or its `.logits`, as Hugging Face models return.

    Raises:
        ConfigError: It is neither.
    """
    logits = output if isinstance(output, torch.Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, torch.Tensor):
        raise ConfigError(
            f"the model's forward returned {in_words(output)}, not logits",
            help=f"return the logits (B, T, V), as a tensor or an object with `.logits`{_instead(output)}",
        )
    return logits


def in_words(value: Any) -> str:
    """What a value is, with the shapes of tensors in it.

    >>> in_words((torch.zeros(2, 3), None)), in_words({"loss": 1.0}), in_words("text")
    ('a tuple of (Tensor (2, 3), None)', 'a dict of (loss: float)', 'a str')
    """
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} of ({', '.join(f'{name}: {_item(item)}' for name, item in value.items())})"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of ({', '.join(map(_item, value))})"
    return _item(value) if value is None or isinstance(value, torch.Tensor) else f"a {type(value).__name__}"


def _item(value: Any) -> str:
    if value is None:
        return "None"
    return type(value).__name__ + (f" {tuple(value.shape)}" if isinstance(value, torch.Tensor) else "")


def _instead(output: Any) -> str:
    if isinstance(output, Mapping) and isinstance(output.get("logits"), torch.Tensor):
        return ': here output["logits"] alone'
    if isinstance(output, tuple | list):
        places = [place for place, item in enumerate(output) if isinstance(item, torch.Tensor) and item.ndim == 3]
        return f": here output[{places[0]}] alone" if places else ""
    return ""
