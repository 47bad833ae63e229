"""A checkpoint as a complete Hugging Face directory: weights, configuration, tokenizer, model card.

The directory appears whole or not at all. Before it does, transformers loads it, and its logits are compared with those
of the checkpoint. Damaged checkpoints, and models that transformers has no class for, are refused.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from automodel_cli.engine import durable
from automodel_cli.engine.bounded import read_bytes
from automodel_cli.engine.checkpoint import layout
from automodel_cli.engine.checkpoint.manifest import Manifest, examine, read_manifest
from automodel_cli.engine.checkpoint.read_tensors import LazyTensors, checkpoint_weights
from automodel_cli.engine.checkpoint.tensor_index import json_object
from automodel_cli.engine.checkpoint.write_tensors import write_tensors
from automodel_cli.engine.exchange.export_files import model_card, write_tokenizer
from automodel_cli.engine.exchange.logits import largest_difference
from automodel_cli.errors import CheckpointError, UsageError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_WINDOW_KEYS = ("n_positions", "max_position_embeddings")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        directory: The Hugging Face directory.
        step: Optimisation steps of the checkpoint.
        num_parameters: Stored parameters, tied ones once.
        dtype: Type of the weights, as torch names it.
        files: Size in bytes of each file.
        logit_difference: Largest difference of the logits from the checkpoint's; None if not compared.
        notes: What is missing in the directory, and why.
    """

    directory: Path
    step: int
    num_parameters: int
    dtype: str
    files: dict[str, int]
    logit_difference: float | None
    notes: tuple[str, ...]


def export_checkpoint(
    checkpoint: Path,
    output: Path,
    *,
    dtype: str | None = None,
    max_shard_bytes: int = 5 * 10**9,
    check: bool = True,
    overwrite: bool = False,
    say: Callable[[str], None],
) -> Exported:
    """Writes the model of a checkpoint as a Hugging Face directory.

    Args:
        checkpoint: As `layout.resolve` returns it.
        output: The new directory.
        dtype: One of `DTYPES` for all floating-point weights; None keeps theirs.
        max_shard_bytes: Larger weights are cut into several files with an index.
        check: Load the result with transformers and compare logits.
        overwrite: Replace a model that is in `output` already.
        say: Called with what is being done, for users.

    Raises:
        CheckpointError: The checkpoint cannot be exported, `output` cannot be written to, or the result is not the
            same function.
        UsageError: `output` is in the way.
    """
    manifest = _sound(checkpoint)
    partial = output.with_name(f".{output.name}.tmp-{os.getpid()}")
    try:
        _check_output(output, overwrite=overwrite)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        say("writing the weights")
        tensors = checkpoint_weights(checkpoint, manifest.files)
        stored = _write_weights(tensors, partial, dtype, max_shard_bytes)
        config = _write_configs(checkpoint, partial, stored)
        notes = _write_tokenizer(partial, manifest, config)
        num_parameters = sum(tensor.numel() for tensor in _sizes(tensors).values())
        config_yaml = read_bytes(checkpoint / layout.CONFIG_FILE).decode(errors="replace")
        card = model_card(
            output.name,
            facts=manifest.facts,
            step=manifest.step,
            num_parameters=num_parameters,
            dtype=stored,
            config_yaml=config_yaml,
        )
        (partial / "README.md").write_text(card, encoding="utf-8", newline="\n")
        difference = None
        if check:
            say("comparing the logits with those of the checkpoint")
            difference = largest_difference(checkpoint / layout.MODEL_DIRECTORY, partial, stored)
        _publish(partial, output)
    except OSError as error:
        if error.errno is None:  # transformers says so that it cannot load what was written
            raise
        raise CheckpointError(
            f"the model could not be written: {error.strerror}",
            where=str(output),
            help="name a directory that can be written to, with enough room, with --out",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    files = {path.name: path.stat().st_size for path in sorted(output.iterdir())}
    return Exported(output, manifest.step, num_parameters, stored, files, difference, tuple(notes))


def _sound(checkpoint: Path) -> Manifest:
    manifest = read_manifest(checkpoint)
    broken = examine(checkpoint).broken
    if broken:
        raise CheckpointError(
            "the checkpoint is damaged: " + "; ".join(broken), where=str(checkpoint), help="export an earlier one"
        )
    if layout.MODEL_CONFIG_FILE not in manifest.files:
        raise CheckpointError(
            "its model is of a class of its own, for which transformers has no configuration",
            where=str(checkpoint),
            help=f"the weights stand in {layout.MODEL_DIRECTORY}/, under the names of the model's state dict",
        )
    return manifest


def _check_output(output: Path, *, overwrite: bool) -> None:
    if not os.path.lexists(output):
        return
    if output.is_symlink() or not output.is_dir():
        raise UsageError(f"{output} is not a directory", help="name a new one with --out")
    if not any(output.iterdir()):
        return
    if not (output / "config.json").is_file():
        raise UsageError(f"{output} holds something that is not a model", help="name a new directory with --out")
    if not overwrite:
        raise UsageError(f"there is a model in {output} already", help="--overwrite replaces it")


def _write_weights(tensors: Mapping[str, torch.Tensor], partial: Path, dtype: str | None, max_shard_bytes: int) -> str:
    """Writes the weights shard by shard, so that one shard is in memory at a time; returns their type."""
    from huggingface_hub import split_torch_state_dict_into_shards

    sizes = {name: _as(tensor, dtype) for name, tensor in _sizes(tensors).items()}
    split = split_torch_state_dict_into_shards(sizes, max_shard_size=max_shard_bytes)
    for shard, members in split.filename_to_tensors.items():
        write_tensors(partial / shard, {name: _as(tensors[name], dtype) for name in members})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        _write_json(partial / "model.safetensors.index.json", index)
    floating = [tensor.dtype for tensor in sizes.values() if tensor.is_floating_point()]
    return str(max(set(floating), key=floating.count)).removeprefix("torch.")


def _sizes(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same names with tensors on the meta device, which have sizes and no content."""
    if isinstance(tensors, LazyTensors):
        return {name: tensors.without_content(name) for name in tensors}
    return {name: tensor.to("meta") for name, tensor in tensors.items()}


def _as(tensor: torch.Tensor, dtype: str | None) -> torch.Tensor:
    return tensor.to(DTYPES[dtype]) if dtype is not None and tensor.is_floating_point() else tensor


def _write_configs(checkpoint: Path, partial: Path, stored: str) -> dict[str, Any]:
    config: dict[str, Any] = json_object(checkpoint / layout.MODEL_CONFIG_FILE)
    config["dtype"] = stored
    _write_json(partial / "config.json", config)
    special: dict[str, Any] = {
        name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in config
    }
    _write_json(partial / "generation_config.json", {**special, "do_sample": True, "temperature": 0.8, "top_k": 50})
    return config


def _write_tokenizer(partial: Path, manifest: Manifest, config: dict[str, Any]) -> list[str]:
    recorded = manifest.facts.get("tokenizer") or {}
    if not recorded.get("name"):
        return ["no tokenizer files: the run does not say which tokenizer its data had"]
    window = next((config[key] for key in _WINDOW_KEYS if isinstance(config.get(key), int)), None)
    write_tokenizer(partial, recorded["name"], recorded.get("bos_id"), window)
    return []


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8", newline="\n")


def _publish(partial: Path, output: Path) -> None:
    """Synchronises the directory and gives it its name; a model that was there goes once the new one stands."""
    for path in partial.iterdir():
        durable.sync_file(path)
    durable.sync_directory(partial)
    former = output.with_name(f".{output.name}.old-{os.getpid()}")
    if output.exists():
        output.rename(former)
    partial.rename(output)
    durable.sync_directory(output.parent)
    shutil.rmtree(former, ignore_errors=True)
