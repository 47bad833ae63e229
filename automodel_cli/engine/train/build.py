"""Building a run: the parts that a configuration names, fitted to each other, cheap ones first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from automodel_cli.engine.checkpoint.snapshot import Snapshot
from automodel_cli.engine.config.config import TARGET, Config
from automodel_cli.engine.config.file_pattern import vocabulary_error
from automodel_cli.engine.config.instantiate import bind, building, instantiate
from automodel_cli.engine.config.origin import KeyPath, dotted
from automodel_cli.engine.config.sections import ActivationCheckpointingSection, CompileSection
from automodel_cli.engine.config.settings import Settings
from automodel_cli.engine.config.target_sections import validation_sets
from automodel_cli.engine.data.collate import DataSection
from automodel_cli.engine.data.packed_dataset import pack_documents
from automodel_cli.engine.distributed.context_parallel import AttentionOverRanks
from automodel_cli.engine.distributed.distributed_model import parallelised
from automodel_cli.engine.distributed.parallel_model import ParallelModel
from automodel_cli.engine.distributed.rank_group import RankGroup
from automodel_cli.engine.models.attention import attention_in_words, dropout_of, head_size_of, keep_within_documents
from automodel_cli.engine.models.compiling import compile_model
from automodel_cli.engine.models.document_attention import refuse_split_windows
from automodel_cli.engine.models.float8 import use_float8
from automodel_cli.engine.models.head import vocab_size_by_layers
from automodel_cli.engine.models.recompute import recompute_activations
from automodel_cli.engine.models.sizes import is_hugging_face, positions_of, vocab_size_of
from automodel_cli.engine.optim.optimizer import avoid_fused_kernels, build_optimizer
from automodel_cli.engine.optim.param_groups import group_rules
from automodel_cli.engine.protocols import MapDataset
from automodel_cli.engine.train.device import Placement
from automodel_cli.engine.train.generators import seed_everything
from automodel_cli.engine.train.objective import Objective, objective_of
from automodel_cli.engine.train.step_numbers import DeviceGuard, guard_of
from automodel_cli.engine.train.weights import build_model
from automodel_cli.errors import ConfigError, DataError


@dataclass(frozen=True)
class RunParts:
    """The parts of a run, fitted to each other.

    Args:
        dataset: The training set.
        validation: Validation sets by name.
        vocab_size: Vocabulary size of the model; None where it does not state one.
        sections: What the configuration says of each dataset, by its key.
        how: Facts about how the model is run, shown at the start.
        guard: Guard of the optimizer; None where its step waits for loss and norm.
    """

    dataset: MapDataset
    validation: dict[str, MapDataset]
    model: ParallelModel
    vocab_size: int | None
    sections: dict[str, DataSection]
    loss_fn: Objective
    optimizer: torch.optim.Optimizer
    how: dict[str, str]
    guard: DeviceGuard | None


def build_parts(
    config: Config,
    settings: Settings,
    placement: Placement,
    root: Path,
    snapshot: Snapshot | None,
    group: RankGroup,
) -> RunParts:
    """Builds every part with a `_target_` and checks them against each other; cheap parts come first."""
    seed = settings.general.seed
    seed_everything(seed)
    dataset: MapDataset = instantiate(config, "dataset", {"seed": seed, "dp_rank": 0, "dp_world_size": 1})
    validation = {name: instantiate(config, dotted(path)) for name, path in validation_sets(config).items()}
    pack_size = settings.packed_sequence.packed_sequence_size
    if pack_size:
        dataset = pack_documents(dataset, pack_size)
        validation = {name: pack_documents(one, pack_size) for name, one in validation.items()}
    loss = instantiate(config, "loss_fn") if config.get("loss_fn") else None
    optimizer_factory, optimizer_arguments = bind(config, "optimizer", supplied=("params",))
    model, weights = build_model(config, placement.device, seed, group, snapshot, settings.checkpoint.init_from)
    vocab_size = check_fit(config, model, dataset, validation)
    placement.put(model)
    # Before it is parallelised: whether the head can be replaced is seen on whole modules.
    loss_where, model_where = (str(config.origin(path)) for path in (("loss_fn", TARGET), ("model", TARGET)))
    loss_fn = objective_of(loss, model, loss_where if loss else None, tp_size=group.degrees.tp, model_where=model_where)
    if vocab_size is None:
        vocab_size = vocab_size_by_layers(model, loss_fn.head)
    sections = data_sections(config, settings.general.shift_labels, positions_of(model))
    weights.read_whole(model)
    has_documents = bool(pack_size) or bool(getattr(dataset, "document_mask", False))
    names_attention = any(config.get(f"model{place}.attn_implementation") for place in ("", ".config"))
    how = set_up(
        model,
        loss_fn,
        placement,
        settings.activation_checkpointing,
        settings.compile,
        cache=root / ".compiled",
        cp_size=settings.distributed.cp_size,
        has_documents=has_documents,
        names_attention=names_attention,
    )
    is_elastic = settings.general.deterministic == "elastic"
    parallel = parallelised(model, group, settings.distributed, placement.device, is_elastic=is_elastic)
    if parallel.attention is not None:
        how["context"] = context_in_words(model, parallel.attention, placement)
    weights.fill(parallel)
    how["weights"] = weights.words
    with building(optimizer_factory, optimizer_arguments, config, ("optimizer",)):
        optimizer = build_optimizer(optimizer_factory, optimizer_arguments, model, group_rules(config))
    if is_elastic:
        avoid_fused_kernels(optimizer)
    guard, words = guard_of(optimizer, placement.device)
    how |= {"numbers": words} if words else {}
    return RunParts(dataset, validation, parallel, vocab_size, sections, loss_fn, optimizer, how, guard)


def check_fit(
    config: Config, model: nn.Module, dataset: MapDataset, validation: Mapping[str, MapDataset]
) -> int | None:
    """Checks that every dataset fits the model, and returns the model's vocabulary size.

    A number that a user's own model or dataset does not state is not checked.

    Raises:
        DataError: A dataset holds token ids beyond the vocabulary, or samples beyond the positions.
    """
    vocab_size, positions = vocab_size_of(model), positions_of(model)
    paths: dict[KeyPath, MapDataset] = {("dataset",): dataset}
    paths |= {path: validation[name] for name, path in validation_sets(config).items()}
    for path, dataset in paths.items():
        name = dotted(path)
        largest = getattr(dataset, "max_token_id", None)
        if vocab_size is not None and largest is not None and largest >= vocab_size:
            raise vocabulary_error(name, largest, vocab_size, str(config.origin(path)))
        length = getattr(dataset, "seq_len", None)
        if positions is not None and length is not None and length > positions:
            raise DataError(
                f"{name} gives samples of {length} tokens, but the model has {positions} positions",
                where=str(config.origin((*path, "seq_len"))),
                help=f"a seq_len up to {positions} would work",
            )
    return vocab_size


def data_sections(config: Config, shift_labels: bool, positions: int | None) -> dict[str, DataSection]:
    """What is known of each dataset before a sample is read, by its key."""
    return {
        key: DataSection(key, str(config.origin((*path, TARGET))), shift_labels, positions)
        for path in (("dataset",), *validation_sets(config).values())
        if (key := dotted(path))
    }


def set_up(
    model: nn.Module,
    objective: Objective,
    placement: Placement,
    recompute: ActivationCheckpointingSection,
    compiling: CompileSection,
    *,
    cache: Path,
    cp_size: int,
    has_documents: bool,
    names_attention: bool,
) -> dict[str, str]:
    """Sets how the model attends, multiplies, recomputes and compiles, in place; returns what is said of it.

    Args:
        model: On its device, or on the meta device.
        objective: Its objective.
        placement: Device and types.
        recompute: Which activations are computed again in the backward pass.
        compiling: Whether and how it is compiled.
        cache: Directory of compiled programs.
        cp_size: Number of ranks that share a sequence.
        has_documents: Whether samples hold several documents, which must not see each other.
        names_attention: Whether the configuration names the attention of the model.

    Raises:
        ConfigError: The model has no blocks where some are needed, cannot be compiled as asked, or has layers that
            documents or ranks cannot divide a sequence for.
    """
    facts: dict[str, str | None] = {"loss": objective.words}
    if cp_size > 1 and is_hugging_face(model):
        refuse_split_windows(model)
    if has_documents:
        facts["documents"] = keep_within_documents(
            model,
            placement.device,
            may_change=not names_attention,
            splits_sequence=cp_size > 1,
        )
    facts["attention"] = attention_in_words(model, placement.device, placement.product_dtype)
    if placement.uses_float8:
        vocab_size = objective.head.vocab_size if objective.head is not None else vocab_size_of(model)
        facts["fp8"] = use_float8(model, lambda layer: getattr(layer, "out_features", None) == vocab_size)
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
            cache=cache,
        )
    return {name: words for name, words in facts.items() if words is not None}


def context_in_words(model: nn.Module, attention: AttentionOverRanks, placement: Placement) -> str:
    """How attention over a split sequence is computed."""
    return attention.in_words(placement.device, placement.product_dtype, head_size_of(model), dropout_of(model))
