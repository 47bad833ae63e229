"""Reads tensors with torch: the weights of a model from any source, and stored tensors one by one, whole or in part.

Sources are our checkpoints, Hugging Face directories and single files. Nothing that a source contains is executed:
safetensors cannot hold code, and pickled files are read by torch's restricted unpickler (`weights_only=True`), which
refuses everything but tensors. Files that an index names must lie beside it. A checkpoint of ours is compared with its
manifest first. Parts that the ranks of a run wrote, by us or by `torch.distributed.checkpoint`, are put together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from automodel_cli.engine.checkpoint import layout
from automodel_cli.engine.checkpoint.foreign import pickled_tensors
from automodel_cli.engine.checkpoint.manifest import MANIFEST_NAME, examine
from automodel_cli.engine.checkpoint.stored_tensors import (
    Piece,
    StoredTensor,
    TensorInfo,
    files_of_parts,
    read_header,
    stored_tensors,
)
from automodel_cli.engine.checkpoint.tensor_index import indexed_files, json_object
from automodel_cli.engine.checkpoint.write_tensors import DTYPES
from automodel_cli.engine.distributed.region import Region
from automodel_cli.errors import CheckpointError

SAFETENSORS_NAME = "model.safetensors"
_INDEX_NAMES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE_NAMES = (SAFETENSORS_NAME, "pytorch_model.bin")
_PICKLED = (".bin", ".pt", ".pth")
_FORMS = "a checkpoint of amcli, a Hugging Face directory, a .safetensors file or a .bin, .pt or .pth file"
_TORCH_TYPES = {name: dtype for dtype, name in DTYPES.items()}


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


class LazyTensors(Mapping[str, torch.Tensor]):
    """The tensors of some safetensors files by name; a pickled copy opens the files again.

    A tensor stays in its files until it is asked for, whole or in part; then it is copied into memory, so removing a
    file later, as happens to old checkpoints, takes nothing away.

    Args:
        files: Only their headers are read.

    Raises:
        CheckpointError: A header is not sound.
        OSError: A file cannot be read.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._files = tuple(files)
        self._stored = stored_tensors(self._files)
        self._open: dict[Path, Any] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.region(name, Region.whole(self._stored[name].shape))

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def __getstate__(self) -> tuple[tuple[Path, ...], dict[str, StoredTensor]]:
        return self._files, self._stored

    def __setstate__(self, state: tuple[tuple[Path, ...], dict[str, StoredTensor]]) -> None:
        (self._files, self._stored), self._open = state, {}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the whole tensor."""
        return self._stored[name].shape

    def without_content(self, name: str) -> torch.Tensor:
        """A tensor on the meta device, of the stored one's shape and type."""
        info = self._stored[name].info
        # Types that only the format has take one byte or less.
        return torch.empty(info.shape, dtype=_TORCH_TYPES.get(info.dtype, torch.uint8), device="meta")

    def can_be_read(self) -> bool:
        """Whether this process sees all of the files, as they were when their headers were read."""
        try:
            return stored_tensors(self._files) == self._stored
        except (OSError, CheckpointError):
            return False

    def region(self, name: str, region: Region) -> torch.Tensor:
        """A part of a tensor, on the CPU.

        Raises:
            CheckpointError: A file cannot be read any more.
        """
        tensor = self._stored[name]
        found: torch.Tensor | None = None
        for piece, common in tensor.pieces_of(region):
            content = self._read(name, piece, common)
            if common == region:
                return content.clone()
            found = torch.empty(region.sizes, dtype=content.dtype) if found is None else found
            found[common.within(region)] = content
        # Nothing is asked for: only the type is of interest.
        return torch.empty(region.sizes, dtype=self.without_content(name).dtype) if found is None else found

    def _read(self, name: str, piece: Piece, region: Region) -> torch.Tensor:
        try:
            file = self._open.get(piece.file)
            if file is None:
                file = self._open[piece.file] = safe_open(piece.file, framework="pt")
            if region == piece.region:
                return file.get_tensor(name)
            return file.get_slice(name)[region.within(piece.region)]
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{name} cannot be read: {error}", where=str(piece.file)) from error
