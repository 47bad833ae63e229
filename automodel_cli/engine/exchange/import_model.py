"""A Hugging Face directory as a checkpoint of ours: weights only, to start a run from or to sample.

GPT-2 becomes our own model where that is the same function; every other architecture that
transformers knows stays the class of transformers. Its `config.json` is read as data, and no code
that lies beside it is ever run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from automodel_cli import __version__
from automodel_cli.engine.checkpoint.read_tensors import read_model_config, read_weights
from automodel_cli.engine.checkpoint.run_directory import run_lock
from automodel_cli.engine.checkpoint.save import save
from automodel_cli.engine.checkpoint.snapshot import Snapshot
from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.emit import to_yaml
from automodel_cli.engine.config.instantiate import instantiate
from automodel_cli.engine.config.origin import Origin
from automodel_cli.engine.models.export import export_model
from automodel_cli.engine.models.stored_weights import adopt_weights
from automodel_cli.errors import CheckpointError, ConfigError

_GPT2_SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
# What our GPT-2 always does; a directory that asks for something else keeps the class of transformers.
_GPT2_FIXED = {
    "activation_function": "gelu_new",
    "tie_word_embeddings": True,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "n_inner": None,
}
# Keys of a configuration that are written anew, or lead to code that is not run.
_NOT_KEPT = ("architectures", "transformers_version", "model_type", "dtype", "torch_dtype", "_name_or_path", "auto_map")


@dataclass(frozen=True)
class Imported:
    """The new checkpoint, the class of its model, its parameters (tied ones once), and the tokenizer's place."""

    directory: Path
    model_class: str
    num_parameters: int
    tokenizer: str | None


def import_model(source: Path, root: Path) -> Imported:
    """Writes `root/step_000000` with the weights of a directory.

    Args:
        source: Holds `config.json`, weights, and perhaps a tokenizer.
        root: Directory of checkpoints; must not hold a step 0 yet.

    Raises:
        CheckpointError: The directory cannot be read, its architecture is not known, or a run is working in `root`.
    """
    config = read_model_config(source)
    if config is None:
        raise CheckpointError(
            "there is no config.json, which says what architecture the weights have",
            where=str(source),
            help="name a Hugging Face directory; bare weights can start a run with checkpoint.init_from",
        )
    section = _gpt2_section(config) or _transformers_section(config, source)
    with run_lock(root, advice="wait for it, stop it, or name another directory with --out"):
        return _import(source, root, config, section)


def _import(source: Path, root: Path, config: dict[str, Any], section: dict[str, Any]) -> Imported:
    # Its values come from a download, and are trusted no more than those of a checkpoint.
    run_config = Config({"model": section}, {(): Origin("checkpoint", str(source / "config.json"))})
    try:
        model: nn.Module = instantiate(run_config, "model", {"device": torch.device("cpu")})
    except ConfigError as error:
        raise CheckpointError(error.message, where=error.where, problems=error.problems) from error
    tensors = read_weights(source)
    model.to(_type_of(tensors))
    adopt_weights(model, tensors)
    exported = export_model(model, bos_id=config.get("bos_token_id"))
    has_tokenizer = (source / "tokenizer.json").is_file() or (source / "tokenizer_config.json").is_file()
    tokenizer = {"name": str(source.resolve()), "bos_id": config.get("bos_token_id")} if has_tokenizer else None
    snapshot = Snapshot(
        step=0,
        config_yaml=to_yaml(run_config, absolute_targets=True),
        model_tensors=exported.tensors,
        model_config=exported.config,
        optim_tensors={},
        train_state={"tokenizer": tokenizer},
        rng_tensors={},
    )
    facts: dict[str, Any] = {
        "imported_from": source.name,
        "tokenizer": tokenizer,
        "versions": {"amcli": __version__, "torch": torch.__version__},
    }
    directory = save(root, snapshot, facts=facts)
    count = sum(parameter.numel() for parameter in model.parameters())
    return Imported(directory, type(model).__name__, count, tokenizer["name"] if tokenizer else None)


def _gpt2_section(config: dict[str, Any]) -> dict[str, Any] | None:
    """The `model` section of our GPT-2, if it is the same function."""
    fixed = all(config.get(name, value) == value for name, value in _GPT2_FIXED.items())
    sized = all(type(config.get(name)) is int for name in _GPT2_SIZES)
    if config.get("model_type") != "gpt2" or not fixed or not sized:
        return None
    section: dict[str, Any] = {"_target_": "automodel_cli.engine.models.gpt2.build_gpt2_model"}
    section.update({name: config[name] for name in _GPT2_SIZES})
    section["layer_norm_epsilon"] = config.get("layer_norm_epsilon", 1e-5)
    return section


def _transformers_section(config: dict[str, Any], source: Path) -> dict[str, Any]:
    """The `model` section that builds the class of transformers from the values of its configuration."""
    from transformers import CONFIG_MAPPING

    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise CheckpointError(
            f"its architecture {model_type!r} is none that transformers knows",
            where=str(source / "config.json"),
            help="code beside the weights is not run; name a _target_ of your own and checkpoint.init_from",
        )
    config_class = CONFIG_MAPPING[model_type]
    try:
        values = json.loads(config_class.from_dict(config).to_json_string())
    # transformers raises TypeError, ValueError, KeyError and errors of huggingface_hub for what is one thing here.
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        message = f"it is no configuration of {config_class.__name__}: {reason}"
        raise CheckpointError(message, where=str(source / "config.json")) from error
    for name in _NOT_KEPT:
        values.pop(name, None)
    return {
        "_target_": "transformers.AutoModelForCausalLM.from_config",
        "config": {**values, "_target_": f"transformers.{config_class.__name__}"},
    }


def _type_of(tensors: dict[str, torch.Tensor]) -> torch.dtype:
    """The type of most of the floating-point weights."""
    sizes: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        if tensor.is_floating_point():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    return max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)
