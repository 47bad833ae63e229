"""Whether two directories hold the same function: the logits of both, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from automodel_cli.engine.bounded import shown
from automodel_cli.engine.checkpoint.read_tensors import read_weights
from automodel_cli.engine.checkpoint.tensor_index import json_object
from automodel_cli.engine.models.calling import logits_of
from automodel_cli.engine.models.gpt2 import GPT2Config, build_gpt2_model
from automodel_cli.engine.models.stored_weights import adopt_weights
from automodel_cli.errors import CheckpointError

_LENGTH = 32
# Both compute in fp32 from the same stored values, so only the order of sums may differ.
_TOLERANCE = 1e-3


@torch.no_grad()
def largest_difference(original: Path, exported: Path, dtype: str) -> float:
    """The largest difference between the logits of both, relative to the largest logit.

    Our own GPT-2 stands for the original where it can, so that the two sides share no code.

    Args:
        original: The `model/` directory of a checkpoint.
        exported: The directory that transformers will load.
        dtype: Type of the exported weights, as torch names it; the original is rounded to it first.

    Raises:
        CheckpointError: They are not the same function, or transformers cannot load the export.
    """
    path = original / "config.json"
    config = json_object(path)
    vocab_size, length = config.get("vocab_size"), config.get("n_positions") or _LENGTH
    if type(vocab_size) is not int or type(length) is not int or not 0 < vocab_size < 2**31 or length < 1:
        message = f"vocab_size is {shown(vocab_size)} and n_positions {shown(length)}: whole numbers of at least 1 are"
        raise CheckpointError(f"{message} needed", where=str(path))
    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in read_weights(original).items()}
    ours = _own_model(config, tensors) or _of_config(original, tensors)
    theirs = _loaded(exported)
    ids = torch.randint(vocab_size, (2, _LENGTH), generator=torch.Generator().manual_seed(0))
    ids = ids[:, :length]
    expected, found = (logits_of(model.eval()(ids)).float() for model in (ours, theirs))
    scale = max(1.0, float(expected.abs().max()))
    difference = float((expected - found).abs().max()) / scale
    if not difference <= _TOLERANCE:  # a NaN is no agreement
        raise CheckpointError(
            f"the exported model gives other logits: they differ by {difference:.3g} of the largest, "
            f"and at most {_TOLERANCE:g} is rounding",
            where=str(original),
            help="this is a defect of amcli, or a version of transformers that it does not know; please report it",
        )
    return difference


def _own_model(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> nn.Module | None:
    """Our GPT-2, if that is what the directory holds."""
    names = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
    is_ours = config.get("model_type") == "gpt2" and all(type(config.get(name)) is int for name in names)
    # Numbers that the weights do not bear out may ask for any memory.
    table = tensors.get("transformer.wte.weight")
    if not is_ours or table is None or tuple(table.shape) != (config["vocab_size"], config["n_embd"]):
        return None
    if config["n_layer"] > len(tensors) or config["n_positions"] != len(tensors.get("transformer.wpe.weight", ())):
        return None
    if config.get("activation_function") != "gelu_new" or not config.get("tie_word_embeddings", True):
        return None
    epsilon = config.get("layer_norm_epsilon", GPT2Config.layer_norm_epsilon)
    model = build_gpt2_model(**{name: config[name] for name in names}, dropout=0.0, layer_norm_epsilon=epsilon)
    adopt_weights(model, tensors)
    return model


def _of_config(directory: Path, tensors: dict[str, torch.Tensor]) -> nn.Module:
    """The class of transformers that a directory's `config.json` names, in fp32, with the given weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with _loading(directory):
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    adopt_weights(model, tensors)
    return model


def _loaded(directory: Path) -> nn.Module:
    """The model that transformers loads from a directory, in fp32."""
    from transformers import AutoModelForCausalLM

    with _loading(directory):
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
    return model


@contextmanager
def _loading(directory: Path) -> Iterator[None]:
    """Without progress bars, since this is a check within a command that has its own lines.

    Raises:
        CheckpointError: The body raised.
    """
    from transformers.utils import logging

    shows_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    # transformers raises OSError, ValueError, KeyError and RuntimeError for what is one thing here.
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(f"transformers cannot load it: {reason}", where=str(directory)) from error
    finally:
        if shows_bars:
            logging.enable_progress_bar()
