"""Attention within documents: in blocks by torch's `flex_attention`, or within the windows of a Hugging Face model.

A mask of every pair costs T x T numbers a sample and rules out the fast kernels, so `attend_in_blocks` computes only
the blocks of pairs that a document has. Compiled on a GPU; on a CPU, where torch has no backward pass for it, computed
plainly, as a reference. No dropout; heads of at least 16 on a GPU.

A transformers model that is given a ready mask uses it in place of its own, so a mask of documents alone would open
its attention windows. `masks_within_windows` makes both by the functions of transformers that the layers would use,
one mask for each kind of layer. Layers that carry a state along the sequence see across every document border whatever
the mask, and are refused; so are windows in sequences that are split over ranks.

Shapes: B batch, T sequence, H heads, D head size.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from automodel_cli.errors import ConfigError

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


LEAST_HEAD_SIZE = 16


def document_blocks(document_ids_BT: torch.Tensor) -> BlockMask:
    """Blocks that have pairs which see each other, and the pairs in them: those of `document_mask`.

    Args:
        document_ids_BT: Equal within a document, non-decreasing.
    """
    B, T = document_ids_BT.shape

    def sees(b: torch.Tensor, _h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (q >= k) & (document_ids_BT[b, q] == document_ids_BT[b, k])

    create = _kernels(document_ids_BT.device.type)[0]
    blocks: BlockMask = create(sees, B, None, T, T, device=document_ids_BT.device)
    return blocks


def attend_in_blocks(
    q_BHTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, blocks: BlockMask
) -> torch.Tensor:
    """Scaled dot-product attention of the pairs in `blocks`; (B, H, T, D)."""
    y_BHTD: torch.Tensor = _kernels(q_BHTD.device.type)[1](q_BHTD, k_BHTD, v_BHTD, block_mask=blocks)
    return y_BHTD


@functools.cache
def _kernels(device_type: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Makes a block mask, and attends with it. Imported here: a run without documents does not pay for it."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if device_type == "cpu":
        return create_block_mask, flex_attention
    # Uncompiled, both would compute the T x T numbers that they exist to avoid.
    return torch.compile(create_block_mask), torch.compile(flex_attention)


_WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
_STATES = frozenset({"linear_attention", "conv", "hybrid", "hybrid_sliding"})


def window_of(model: nn.Module) -> int | None:
    """Window of the narrowest layer of a Hugging Face model, in tokens; None if no layer has one."""
    config = _text_config(model)
    kinds = _kinds_of_layers(config)
    sizes = [getattr(config, key, None) for kind, key in _WINDOWS.items() if kinds is None or kind in kinds]
    return min((size for size in sizes if isinstance(size, int)), default=None)


def refuse_states(model: nn.Module) -> None:
    """Refuses a Hugging Face model in which no mask separates documents.

    Raises:
        ConfigError: Some of its layers carry a state along the sequence.
    """
    kinds = sorted(_STATES & (_kinds_of_layers(_text_config(model)) or frozenset()))
    if kinds:
        raise ConfigError(
            f"{type(model).__name__} has layers of the kind {' and '.join(kinds)}, which carry a state from each "
            "document of a sample into the next",
            help="train without packing and document_mask, or use a model of attention layers alone",
        )


def refuse_split_windows(model: nn.Module) -> None:
    """Refuses windows in sequences that context-parallel ranks share.

    For a part that is no longer than the window there is no mask, so the ranks would ignore the window in silence.

    Raises:
        ConfigError: Some layer of this Hugging Face model has a window.
    """
    window = window_of(model)
    if window is not None:
        raise ConfigError(
            f"{type(model).__name__} sees {window} tokens at once (sliding_window or attention_chunk_size), and "
            "context parallelism splits only attention to all tokens before",
            help="set distributed.cp_size to 1, or, where samples are no longer than the window, the window to null",
        )


def masks_within_windows(model: nn.Module, document_ids_BT: torch.Tensor) -> Any:
    """The `attention_mask` that holds documents and windows: one mask, or one by kind of layer.

    Args:
        model: A Hugging Face model with windows; its attention is sdpa, eager or flex_attention.
        document_ids_BT: Equal within a document, non-decreasing.
    """
    from transformers.masking_utils import create_masks_for_generate

    B, T = document_ids_BT.shape
    # transformers reads only shape, type and device of the embeddings.
    like = torch.empty((), dtype=next(model.parameters()).dtype, device=document_ids_BT.device).expand(B, T, 1)
    return create_masks_for_generate(
        config=model.config,
        inputs_embeds=like,
        attention_mask=None,
        past_key_values=None,
        position_ids=_positions_in_documents(document_ids_BT),
    )


def _positions_in_documents(document_ids_BT: torch.Tensor) -> torch.Tensor:
    """Positions from 0 in each document (B, T), by which transformers recognises packed documents.

    >>> _positions_in_documents(torch.tensor([[0, 0, 1, 2, 2]])).tolist()
    [[0, 1, 0, 0, 1]]
    """
    place_T = torch.arange(document_ids_BT.shape[1], device=document_ids_BT.device)
    begins_BT = torch.ones_like(document_ids_BT, dtype=torch.bool)
    begins_BT[:, 1:] = document_ids_BT[:, 1:] != document_ids_BT[:, :-1]
    return place_T - torch.where(begins_BT, place_T, 0).cummax(dim=1).values


def _text_config(model: nn.Module) -> Any:
    """The part of a model's configuration that its text layers follow."""
    config: Any = model.config
    return config.get_text_config()


def _kinds_of_layers(config: Any) -> frozenset[str] | None:
    """Kinds of its layers; None if the configuration does not list them."""
    kinds = getattr(config, "layer_types", None)
    return None if kinds is None else frozenset(kinds)


@contextlib.contextmanager
def without_packing_masks() -> Iterator[None]:
    """Keeps transformers from making a mask for packed documents, in a pass on tensors without content.

    It looks at position ids for borders of documents; fake ones have no values, so it would assume borders.
    """
    module = sys.modules.get("transformers.masking_utils")
    found = getattr(module, "find_packed_sequence_indices", None)
    if found is None:
        yield
        return
    setattr(module, "find_packed_sequence_indices", lambda *_arguments, **_keywords: None)  # noqa: B010
    try:
        yield
    finally:
        setattr(module, "find_packed_sequence_indices", found)  # noqa: B010
