"""What tensors lie in files of other tools: names, types, shapes. No torch, and nothing is executed.

Read are safetensors files, Hugging Face directories, files of `torch.save` and directories of
`torch.distributed.checkpoint` (as NeMo and torchtitan write them). Sizes are checked before reading.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automodel_cli.engine.checkpoint.inert_pickle import Record, read_inert
from automodel_cli.engine.checkpoint.stored import StoredTensor, stored_tensors
from automodel_cli.engine.checkpoint.tensor_header import TensorInfo
from automodel_cli.engine.checkpoint.tensor_index import indexed_files, json_object
from automodel_cli.errors import CheckpointError

DCP_METADATA = ".metadata"
_PICKLED = (".pt", ".pth", ".bin", ".ckpt")
_INDEX = "model.safetensors.index.json"
_DTYPES = {
    **{"float64": "F64", "double": "F64", "Double": "F64", "float32": "F32", "Float": "F32", "float": "F32"},
    **{"float16": "F16", "Half": "F16", "half": "F16", "bfloat16": "BF16", "BFloat16": "BF16"},
    **{"int64": "I64", "Long": "I64", "int32": "I32", "Int": "I32", "int16": "I16", "Short": "I16"},
    **{"int8": "I8", "Char": "I8", "uint8": "U8", "Byte": "U8", "bool": "BOOL", "Bool": "BOOL"},
}
_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class ForeignTensors:
    """The tensors of a place.

    Args:
        kind: What the place is, in words.
        tensors: By name.
        stored: Where each tensor stands, of those in safetensors files.
        config: Contents of `config.json`; None without one.
    """

    kind: str
    tensors: dict[str, TensorInfo]
    stored: dict[str, StoredTensor]
    config: dict[str, Any] | None = None


def read_foreign(path: Path) -> ForeignTensors | None:
    """The tensors of a file or directory that is no checkpoint of ours; None if it holds none that we know.

    Raises:
        CheckpointError: It is of a known kind and broken.
    """
    if path.is_file():
        if path.suffix == ".safetensors":
            return _stored("safetensors file", stored_tensors([path]))
        is_pickled = path.suffix in _PICKLED
        return ForeignTensors("torch.save file", pickled_tensors(path), {}) if is_pickled else None
    if (path / DCP_METADATA).is_file():
        return _distributed_checkpoint(path)
    files = _safetensors_files(path)
    if files:
        config = json_object(path / "config.json") if (path / "config.json").is_file() else None
        kind = "Hugging Face directory" if config is not None else "directory of safetensors files"
        return _stored(kind, stored_tensors(files), config)
    pickled = sorted(path.glob("pytorch_model*.bin"))
    if not pickled:
        return None
    merged: dict[str, TensorInfo] = {}
    for file in pickled:
        merged |= pickled_tensors(file)
    return ForeignTensors("Hugging Face directory, pickled", merged, {})


def _stored(kind: str, tensors: dict[str, StoredTensor], config: dict[str, Any] | None = None) -> ForeignTensors:
    return ForeignTensors(kind, {name: tensor.info for name, tensor in tensors.items()}, tensors, config)


def _safetensors_files(directory: Path) -> list[Path]:
    index = directory / _INDEX
    return indexed_files(index) if index.is_file() else sorted(directory.glob("*.safetensors"))


def pickled_tensors(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a file of `torch.save`: an archive with one pickle that describes them, and their contents.

    Raises:
        CheckpointError: It is no such archive, or a broken one.
    """
    try:
        return _torch_save(path)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"the archive cannot be read: {error}", where=str(path)) from error


def _torch_save(path: Path) -> dict[str, TensorInfo]:
    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            "it is no archive of `torch.save` (older versions wrote a bare pickle)",
            where=str(path),
            help="load it with torch and save it again, or convert it to safetensors",
        )
    with zipfile.ZipFile(path) as archive:
        names = [info for info in archive.infolist() if info.filename.endswith("data.pkl")]
        if len(names) != 1:
            raise CheckpointError("the archive has no single data.pkl", where=str(path))
        with archive.open(names[0]) as file:
            value = read_inert(file, path, names[0].file_size)
    return dict(_tensors_in(value, ""))


def _tensors_in(value: Any, prefix: str) -> Iterator[tuple[str, TensorInfo]]:
    """Every tensor below a value, by its dotted place."""
    if isinstance(value, Record):
        if value.path.startswith("torch._utils._rebuild_tensor") and len(value.args) >= 3:
            yield prefix, _rebuilt(value)
        elif value.path == "torch._utils._rebuild_parameter" and value.args:
            yield from _tensors_in(value.args[0], prefix)
        else:
            yield from _tensors_in(value.items, prefix)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _tensors_in(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _tensors_in(inner, f"{prefix}.{index}" if prefix else str(index))


def _rebuilt(record: Record) -> TensorInfo:
    storage, shape = record.args[0], record.args[2]
    # ("storage", <class torch.FloatStorage>, key, device, size)
    kind = storage[1] if isinstance(storage, tuple) and len(storage) > 1 else None
    name = getattr(kind, "path", "").rpartition(".")[2].removesuffix("Storage")
    return _info(name, shape)


def _info(dtype: str, shape: Any) -> TensorInfo:
    known = _DTYPES.get(dtype, dtype or "unknown")
    sizes = tuple(shape) if isinstance(shape, tuple | list) and all(type(size) is int for size in shape) else ()
    return TensorInfo(known, sizes, math.prod(sizes) * _BYTES.get(known, 0))


def _distributed_checkpoint(directory: Path) -> ForeignTensors:
    """`.metadata` of `torch.distributed.checkpoint`: a pickle of `Metadata(state_dict_metadata=...)`."""
    path = directory / DCP_METADATA
    with path.open("rb") as file:
        value = read_inert(file, path, path.stat().st_size)
    entries = value.attribute("state_dict_metadata") if isinstance(value, Record) else None
    if not isinstance(entries, dict):
        raise CheckpointError("it does not describe a state dict", where=str(path))
    tensors = {}
    for name, entry in entries.items():
        if isinstance(entry, Record) and entry.path.endswith(".TensorStorageMetadata"):
            tensors[str(name)] = _info(_dcp_dtype(entry.attribute("properties")), _dcp_size(entry.attribute("size")))
    return ForeignTensors("torch.distributed.checkpoint directory", tensors, {})


def _dcp_dtype(properties: Any) -> str:
    state = getattr(properties, "state", None)
    first = state[0] if isinstance(state, tuple) and state else properties and properties.attribute("dtype")
    # A dtype is pickled as the global `torch.float32`, so it is a class of records here.
    return str(getattr(first, "path", "")).rpartition(".")[2]


def _dcp_size(size: Any) -> Any:
    return size.args[0] if isinstance(size, Record) and size.args else size
