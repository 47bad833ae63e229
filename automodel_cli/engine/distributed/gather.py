"""Whole tensors from sharded ones and back, one tensor at a time, so that no rank ever holds two copies of a model.

What is gathered is the same in every layout; `parts.py` is for checkpoints that every rank writes a part of.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.distributed.tensor import DTensor

from automodel_cli.engine.distributed.parts import own_region, wrapped
from automodel_cli.engine.distributed.region import Region
from automodel_cli.engine.distributed.tensor_parallel import rows_by_part, rows_by_rank

Turn = Callable[[str, torch.Tensor], torch.Tensor]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor; every rank that holds a part of it must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(source: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """A whole tensor, sharded as `model` is if it has its shape; of any type."""
    if not isinstance(model, DTensor) or source.shape != model.shape:
        return source
    return wrapped(own_part(source, model), model)


def rows_in_model_order(names: frozenset[str], num_ranks: int) -> Turn:
    """A function that puts rows back into the order of the model, for parameters that were reordered."""
    return lambda name, tensor: rows_by_part(tensor, num_ranks).contiguous() if name in names else tensor


def rows_in_rank_order(names: frozenset[str], num_ranks: int) -> Turn:
    """The inverse of `rows_in_model_order`."""
    return lambda name, tensor: rows_by_rank(tensor, num_ranks).contiguous() if name in names else tensor


def own_part(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """This rank's part of a whole tensor under the layout of another."""
    return source[own_region(target).within(Region.whole(source.shape))]
