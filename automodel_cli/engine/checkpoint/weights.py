"""The weights of a model, wherever they come from: our checkpoints, Hugging Face directories, single files.

Nothing that a source contains is executed: safetensors cannot hold code, and pickled files are read
by torch's restricted unpickler (`weights_only=True`), which refuses everything but tensors. Files
that an index names must lie beside it. A checkpoint of ours is compared with its manifest first.
Parts that the ranks of a run wrote, we or `torch.distributed.checkpoint`, are put together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from automodel_cli.engine.checkpoint import layout
from automodel_cli.engine.checkpoint.foreign import pickled_tensors
from automodel_cli.engine.checkpoint.lazy_tensors import LazyTensors
from automodel_cli.engine.checkpoint.manifest import MANIFEST_NAME, examine
from automodel_cli.engine.checkpoint.stored import files_of_parts
from automodel_cli.engine.checkpoint.tensor_header import TensorInfo, read_header
from automodel_cli.engine.checkpoint.tensor_index import indexed_files, json_object
from automodel_cli.errors import CheckpointError

SAFETENSORS_NAME = "model.safetensors"
_INDEX_NAMES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE_NAMES = (SAFETENSORS_NAME, "pytorch_model.bin")
_PICKLED = (".bin", ".pt", ".pth")
_FORMS = "a checkpoint of amcli, a Hugging Face directory, a .safetensors file or a .bin, .pt or .pth file"


def model_directory(path: Path) -> Path:
    """Where the weights and their `config.json` lie: `model/` of a checkpoint of ours, else `path` itself.

    Raises:
        CheckpointError: There is nothing, or a checkpoint of ours that is damaged.
    """
    if path.name not in layout.LINKS and not path.exists():
        raise CheckpointError("there is no such file or directory", where=str(path), help=f"name {_FORMS}")
    is_run = path.is_dir() and bool(layout.list_steps(path))
    directory = layout.resolve(path) if is_run or path.name in layout.LINKS else path
    if not (directory / MANIFEST_NAME).exists():
        return directory
    broken = examine(directory).broken
    if broken:
        raise CheckpointError(
            "the checkpoint is damaged: " + "; ".join(broken), where=str(directory), help="use another checkpoint"
        )
    return directory / layout.MODEL_DIRECTORY


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model by name, on the CPU.

    Args:
        path: See the module's header; a run's directory means its `LATEST`.

    Raises:
        CheckpointError: There are no weights, or they cannot be read safely.
    """
    place = model_directory(path)
    parts = [] if place.is_file() else files_of_parts(place)
    if parts:
        return dict(LazyTensors(parts))
    tensors: dict[str, torch.Tensor] = {}
    for file in [place] if place.is_file() else _weight_files(place):
        for name, tensor in _read(file).items():
            if name in tensors:
                raise CheckpointError(f"the tensor {name!r} stands in two files", where=str(file))
            tensors[name] = tensor
    return tensors


def read_model_config(path: Path) -> dict[str, Any] | None:
    """The contents of `config.json` beside the weights; None where there is none.

    Raises:
        CheckpointError: It is not a JSON object.
    """
    place = model_directory(path)
    file = (place.parent if place.is_file() else place) / "config.json"
    return json_object(file) if file.is_file() else None


def checkpoint_weights(directory: Path, names: Collection[str]) -> Mapping[str, torch.Tensor]:
    """The weights of a checkpoint of ours, which stay in their files until they are asked for where that is possible.

    Args:
        directory: The checkpoint, compared with its manifest already.
        names: The files of its manifest.

    Raises:
        CheckpointError: There are none, or they cannot be read safely.
    """
    files = [directory / name for name in layout.model_files(names)]
    if not files:
        raise CheckpointError("it has no weights", where=str(directory), help="use another checkpoint")
    return _read(files[0]) if files[0].suffix in _PICKLED else LazyTensors(files)


def _weight_files(directory: Path) -> list[Path]:
    """The files of a directory that hold the weights, safetensors before pickled ones."""
    for index, single in zip(_INDEX_NAMES, _SINGLE_NAMES, strict=True):
        if (directory / single).is_file():
            return [directory / single]
        if (directory / index).is_file():
            return indexed_files(directory / index)
    raise CheckpointError(
        "there are no weights here: neither " + " nor ".join((*_SINGLE_NAMES, *_INDEX_NAMES)),
        where=str(directory),
        help=f"name {_FORMS}",
    )


def _read(file: Path) -> dict[str, torch.Tensor]:
    is_pickled = file.suffix in _PICKLED
    # Before torch or safetensors allocate anything, whatever the file says of itself.
    if is_pickled:
        _check_sizes(file, pickled_tensors(file))
    else:
        read_header(file)
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True) if is_pickled else load_file(file)
    # A broken pickle raises nearly anything, and so does what torch makes of it.
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"the weights cannot be read: {reason}", where=str(file), help=f"name {_FORMS}"
        ) from error
    return _tensors_of(loaded, file)


def _check_sizes(file: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """Refuses tensors that are larger than their file: one element may be said to stand for a terabyte."""
    file_bytes = file.stat().st_size
    for name, tensor in tensors.items():
        if tensor.num_bytes > file_bytes:
            message = f"the tensor {name!r} would take {tensor.num_bytes:,} bytes, and the file has {file_bytes:,}"
            raise CheckpointError(message, where=str(file), help=f"name {_FORMS}")


def _tensors_of(loaded: Any, file: Path) -> dict[str, torch.Tensor]:
    """A state dict, or the one that training scripts keep under `model` or `state_dict`."""
    if isinstance(loaded, dict):
        for key in ("model", "state_dict", "model_state_dict"):
            if isinstance(loaded.get(key), dict):
                loaded = loaded[key]
        if loaded and all(isinstance(name, str) and isinstance(item, torch.Tensor) for name, item in loaded.items()):
            return loaded
    raise CheckpointError("it holds no state dict: a mapping of names to tensors", where=str(file))
