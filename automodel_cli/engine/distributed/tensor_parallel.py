"""Tensor parallelism: splits the matrices of a model over ranks, by a plan that the model states.

A plan maps names of modules, with `*` for the number of a block, to styles. Our GPT-2 and Hugging Face models
have one as `tp_plan`, and our GPT-2 another, `sequence_plan`, for the modules between the matrices. Columns and
rows alternate, so that a block needs two sums over the ranks. Every rank holds a whole copy of what a plan does not
name.

A fused projection of queries, keys and values is sharded by heads: its rows are put into the order of the ranks
first (`rows_by_rank`), and back into the model's order wherever the whole tensor is used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from automodel_cli.engine.distributed.module_tree import tie_again, tied_places
from automodel_cli.errors import ConfigError

FUSED_QKV = "fused_qkv_colwise"
_QKV_PARTS = 3


def split_matrices(model: nn.Module, mesh: DeviceMesh, *, sequence_parallel: bool) -> frozenset[str]:
    """Splits a model in place.

    Args:
        model: With the same weights on every rank.
        mesh: The tensor-parallel ranks, one dimension.
        sequence_parallel: Split the activations between the matrices along the sequence.

    Returns:
        Names of the parameters whose rows are in the order of the ranks.

    Raises:
        ConfigError: The model has no plan, or a plan with a style that is not known here.
    """
    plan = _plan_of(model, sequence_parallel)
    tied = tied_places(model)
    by_name = dict(model.named_modules())
    styles: dict[str, ParallelStyle] = {}
    reordered = set()
    for name, module in by_name.items():
        style = next((style for pattern, style in plan.items() if _matches(pattern, name)), None)
        if style is None and isinstance(module, nn.Embedding) and _is_tied_to_split_head(module, tied, plan):
            style = "embedding_rowwise"
        if style is None:
            continue
        if style == FUSED_QKV:
            reordered |= {f"{name}.{key}" for key, _ in module.named_parameters(recurse=False)}
            _reorder(module, mesh.size())
        styles[name] = _style(name, module, style, sequence_parallel)
    for name, style_of_module in styles.items():
        parallelize_module(by_name[name], mesh, style_of_module)
    tie_again(tied)
    if sequence_parallel:
        _split_positions(model, plan, mesh)
    return frozenset(reordered)


def splits(model: nn.Module, layer: nn.Module) -> bool:
    """Whether the model's plan splits one of its layers; False without a plan."""
    plan: Mapping[str, str] = getattr(model, "tp_plan", None) or {}
    name = next((name for name, module in model.named_modules() if module is layer), "")
    return any(_matches(pattern, name) for pattern in plan)


def rows_by_rank(whole: torch.Tensor, num_ranks: int) -> torch.Tensor:
    """Rows [q; k; v] in the order [q0; k0; v0; q1; ...], so that equal chunks hold whole heads of one rank.

    >>> rows_by_rank(torch.arange(6), 2).tolist()
    [0, 2, 4, 1, 3, 5]
    """
    return whole.unflatten(0, (_QKV_PARTS, num_ranks, -1)).transpose(0, 1).flatten(0, 2)


def rows_by_part(whole: torch.Tensor, num_ranks: int) -> torch.Tensor:
    """The inverse of `rows_by_rank`.

    >>> rows_by_part(torch.tensor([0, 2, 4, 1, 3, 5]), 2).tolist()
    [0, 1, 2, 3, 4, 5]
    """
    return whole.unflatten(0, (num_ranks, _QKV_PARTS, -1)).transpose(0, 1).flatten(0, 2)


def _plan_of(model: nn.Module, sequence_parallel: bool) -> dict[str, str]:
    """The plan of a model, with full names of modules.

    Raises:
        ConfigError: There is none.
    """
    kind = type(model).__name__
    # Hugging Face models join the plans of their parts under the same name.
    plan: Mapping[str, str] | None = getattr(model, "tp_plan", None)
    between: Mapping[str, str] | None = getattr(model, "sequence_plan", None)
    if not plan:
        raise ConfigError(
            f"{kind} states no plan for tensor parallelism",
            help="set distributed.tp_size to 1 (fsdp2 divides the model's memory, too), or take the built-in GPT-2 or "
            "a Hugging Face model that has one, such as Llama or Qwen3",
        )
    if not sequence_parallel:
        return dict(plan)
    if not between:
        raise ConfigError(
            f"{kind} states no plan for sequence parallelism", help="set distributed.sequence_parallel to false"
        )
    return {**plan, **between}


def _matches(pattern: str, name: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", r"\d+"), name) is not None


def _style(name: str, module: nn.Module, style: str, sequence_parallel: bool) -> ParallelStyle:
    between: Any = Shard(1) if sequence_parallel else Replicate()
    styles: dict[str, ParallelStyle] = {
        "colwise": ColwiseParallel(input_layouts=between),
        FUSED_QKV: ColwiseParallel(input_layouts=between),
        "rowwise": RowwiseParallel(output_layouts=between),
        "colwise_rep": ColwiseParallel(input_layouts=between, output_layouts=Replicate()),
        "colwise_gather_output": ColwiseParallel(input_layouts=between, output_layouts=Replicate()),
        "embedding_rowwise": RowwiseParallel(input_layouts=Replicate(), output_layouts=between),
        "sequence_parallel": SequenceParallel(use_local_output=True),
    }
    if style not in styles:
        raise ConfigError(
            f"the plan of the model gives {name} the style {style!r}, which amcli does not know",
            help=f"known are {', '.join(styles)}; set distributed.tp_size to 1",
        )
    return styles[style]


def _reorder(module: nn.Module, num_ranks: int) -> None:
    with torch.no_grad():
        for parameter in module.parameters(recurse=False):
            parameter.copy_(rows_by_rank(parameter, num_ranks).clone())


def _is_tied_to_split_head(module: nn.Module, tied: list[list[tuple[nn.Module, str]]], plan: Mapping[str, str]) -> bool:
    """Whether an embedding that the plan does not name shares its weight with an output layer that it names."""
    has_head = any("lm_head" in pattern for pattern in plan)
    return has_head and any(any(member is module for member, _ in places) for places in tied)


def _split_positions(model: nn.Module, plan: Mapping[str, str], mesh: DeviceMesh) -> None:
    """Passes this rank's part of the positions to embeddings under sequence parallelism."""

    def own_part(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (args[0].chunk(mesh.size(), dim=1)[mesh.get_local_rank()],)

    for name, module in model.named_modules():
        style = next((style for pattern, style in plan.items() if _matches(pattern, name)), None)
        if isinstance(module, nn.Embedding) and style == "sequence_parallel":
            # Before the hook that takes the part for the whole sequence's.
            module.register_forward_pre_hook(own_part, prepend=True)
