"""What is done to a model between its weights and its ranks: how it attends and multiplies, recomputes and compiles."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from automodel_cli.engine.config.check import Settings
from automodel_cli.engine.distributed.context_parallel import AttentionOverRanks
from automodel_cli.engine.models.attention import (
    attention_in_words,
    dropout_of,
    head_size_of,
    keep_within_documents,
)
from automodel_cli.engine.models.calling import is_hugging_face
from automodel_cli.engine.models.compiling import compile_model
from automodel_cli.engine.models.document_attention import refuse_split_windows
from automodel_cli.engine.models.float8 import use_float8
from automodel_cli.engine.models.recompute import recompute_activations
from automodel_cli.engine.models.sizes import vocab_size_of
from automodel_cli.engine.train.device import Placement
from automodel_cli.engine.train.objective import Objective
from automodel_cli.errors import ConfigError


def set_up(
    model: nn.Module,
    objective: Objective,
    settings: Settings,
    placement: Placement,
    root: Path,
    *,
    has_documents: bool = False,
    names_attention: bool = False,
) -> dict[str, str]:
    """Applies the settings to the model, in place, and returns what is said of it at the start.

    Args:
        model: On its device.
        objective: Of this model.
        settings: `activation_checkpointing` and `compile`.
        placement: Where it computes, and in which types.
        root: Directory of the run, for the cache of compiled programs.
        has_documents: Whether samples hold several documents, which must not see each other.
        names_attention: Whether the configuration names the attention of the model.

    Raises:
        ConfigError: The model has no blocks where some are needed, cannot be compiled as asked, or has layers that
            documents or ranks cannot divide a sequence for.
    """
    dtype = dtype_of_products(settings, placement)
    facts: dict[str, str | None] = {"loss": objective.words}
    if settings.distributed.cp_size > 1 and is_hugging_face(model):
        refuse_split_windows(model)
    if has_documents:
        facts["documents"] = keep_within_documents(
            model,
            placement.device,
            may_change=not names_attention,
            splits_sequence=settings.distributed.cp_size > 1,
        )
    facts["attention"] = attention_in_words(model, placement.device, dtype)
    if placement.uses_float8:
        vocab_size = objective.head.vocab_size if objective.head is not None else vocab_size_of(model)
        facts["fp8"] = use_float8(model, lambda layer: getattr(layer, "out_features", None) == vocab_size)
    recompute, compiling = settings.activation_checkpointing, settings.compile
    if recompute.mode is not None:
        facts["recomputed"] = recompute_activations(model, recompute.mode, recompute.every)
    if compiling.enabled:
        if objective.head is not None:
            if compiling.fullgraph and not compiling.per_block:
                raise ConfigError(
                    "compile.fullgraph is true for the whole model, but the loss in place of its head is not compiled",
                    help="set compile.per_block to true, or compile.fullgraph to false",
                )
            objective.head.stay_uncompiled()
        facts["compiled"] = compile_model(
            model,
            backend=compiling.backend,
            mode=compiling.mode,
            fullgraph=compiling.fullgraph,
            per_block=compiling.per_block,
            cache=root / ".compiled",
        )
    return {name: words for name, words in facts.items() if words is not None}


def context_in_words(model: nn.Module, attention: AttentionOverRanks, settings: Settings, placement: Placement) -> str:
    """How attention over a split sequence is computed.

    Args:
        model: May be parallelised.
        attention: Of its ranks.
        settings: Of the run.
        placement: Where and in which types it computes.
    """
    dtype = dtype_of_products(settings, placement)
    return attention.in_words(placement.device, dtype, head_size_of(model), dropout_of(model))


def dtype_of_products(settings: Settings, placement: Placement) -> torch.dtype:
    """The type that matrices are multiplied in."""
    gathers_bf16 = settings.distributed.mp_policy == "bf16"
    return torch.bfloat16 if gathers_bf16 else placement.autocast_dtype or placement.weight_dtype
