"""Names, types and shapes of tensors in files of other tools. No torch, and nothing is executed.

Reads safetensors files, Hugging Face directories, files of `torch.save` and directories of
`torch.distributed.checkpoint` (as NeMo and torchtitan write them). Sizes are checked before reading.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automodel_cli.engine.bounded import UnsoundError, open_regular, read_bytes
from automodel_cli.engine.checkpoint.inert_pickle import MAX_PICKLE_BYTES, MAX_TEXT, Record, read_inert
from automodel_cli.engine.checkpoint.stored_tensors import (
    MAX_DIMENSIONS,
    MAX_TENSORS,
    StoredTensor,
    TensorInfo,
    are_sizes,
    stored_tensors,
)
from automodel_cli.engine.checkpoint.tensor_index import indexed_files, json_object
from automodel_cli.errors import CheckpointError

DCP_METADATA = ".metadata"
_PICKLED = (".pt", ".pth", ".bin", ".ckpt")
_MAGIC = 0x1950A86A20F9469CFC6C  # of files before torch 1.6
_MAX_DIRECTORY_BYTES = 4 * 2**20  # the list of 50,000 members
_MAX_DTYPE = 40
_UNREADABLE = (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError, ValueError, struct.error)
SizeOf = Callable[[str], int]
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
    """The tensors of a file or directory.

    Args:
        kind: What it is, in words.
        tensors: By name.
        stored: Position of each tensor that is in a safetensors file.
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
    """The tensors of a file of `torch.save`: a pickle that describes them, and their contents.

    Raises:
        CheckpointError: It is no such file, a broken one, or beyond a bound.
    """
    try:
        with _Archive(path) as file:
            # The rule of torch; `zipfile` would also find an archive behind something else.
            if file.read(4) == b"PK\x03\x04":
                value, size_of = _archived(file, path)
            else:
                value, size_of = _bare(file, path)
    except _UNREADABLE as error:
        raise CheckpointError(f"it cannot be read: {error}", where=str(path)) from error
    return _tensors_in(value, path, size_of)


class _Archive(io.FileIO):
    """A file that refuses to read more at a time than the directory of a sound archive takes."""

    def __init__(self, path: Path) -> None:
        with open_regular(path) as file:
            super().__init__(os.dup(file.fileno()))

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise ValueError(
                f"the archive lists its members in {size:,} bytes, and at most {_MAX_DIRECTORY_BYTES:,} are read"
            )
        return super().read(size) or b""


def _archived(file: _Archive, path: Path) -> tuple[Any, SizeOf]:
    """What the pickle of an archive describes, and the size of each storage by its key."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        compressed = next(
            (info for info in members if info.compress_type or info.compress_size != info.file_size), None
        )
        if compressed is not None or sum(info.file_size for info in members) > os.fstat(file.fileno()).st_size:
            raise ValueError("members of the archive are compressed or overlap, and torch.save writes none like that")
        names = [info for info in members if info.filename.endswith("data.pkl")]
        if len(names) != 1:
            raise ValueError("the archive has no single data.pkl")
        if names[0].file_size > MAX_PICKLE_BYTES:
            raise ValueError(
                f"its description has {names[0].file_size:,} bytes, and at most {MAX_PICKLE_BYTES:,} are read"
            )
        with archive.open(names[0]) as content:
            pickled = b"".join(iter(lambda: content.read(_MAX_DIRECTORY_BYTES), b""))
    folder = names[0].filename.removesuffix("data.pkl")
    storages = {info.filename.removeprefix(f"{folder}data/"): info.file_size for info in members}
    return read_inert(io.BytesIO(pickled), path), lambda key: storages.get(key, 0)


def _bare(file: _Archive, path: Path) -> tuple[Any, SizeOf]:
    """What a file of torch before 1.6 describes: pickles of a magic number, a version and the machine come first."""
    file_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    content = io.BytesIO(io.BufferedReader(file, _MAX_DIRECTORY_BYTES).read(MAX_PICKLE_BYTES))
    try:
        magic, _, _ = (read_inert(content, path) for _ in range(3))
    except CheckpointError:
        magic = None
    if magic != _MAGIC:
        raise CheckpointError(
            "it cannot be read: it is neither an archive of `torch.save` nor in its form before torch 1.6",
            where=str(path),
            help="load it with torch and save it again, or convert it to safetensors",
        )
    return read_inert(content, path), lambda key: file_bytes


def _tensors_in(value: Any, path: Path, size_of: SizeOf) -> dict[str, TensorInfo]:
    """Every tensor below a value of a pickle, by its dotted place; an object that occurs again counts once.

    Args:
        value: What the pickle describes.
        path: The file, for errors.
        size_of: The bytes that the file has for a storage, by its key.
    """
    found: dict[str, TensorInfo] = {}
    seen: set[int] = set()
    places: list[Iterator[tuple[str, Any]]] = [iter([("", value)])]
    while places:
        name, inner = next(places[-1], ("", None))
        if inner is None:
            places.pop()
            continue
        if isinstance(inner, Record) and inner.path.startswith("torch._utils._rebuild_parameter") and inner.args:
            inner = inner.args[0]
        if isinstance(inner, Record) and inner.path.startswith("torch._utils._rebuild_tensor"):
            # Tied weights are one tensor under two names, so tensors count at each of their places.
            found[name] = _rebuilt(inner, name, path, size_of)
            if len(found) > MAX_TENSORS:
                raise CheckpointError(f"it has more than the {MAX_TENSORS:,} tensors that are read", where=str(path))
            continue
        inner = inner.items if isinstance(inner, Record) else inner
        if isinstance(inner, dict | list | tuple) and id(inner) not in seen:
            seen.add(id(inner))
            pairs: Iterable[tuple[Any, Any]] = inner.items() if isinstance(inner, dict) else enumerate(inner)
            places.append(_named(name, pairs, path))
    return found


def _named(above: str, pairs: Iterable[tuple[Any, Any]], path: Path) -> Iterator[tuple[str, Any]]:
    """Those members that may be tensors or hold some, by their dotted names."""
    return ((_name(above, key, path), item) for key, item in pairs if isinstance(item, Record | dict | list | tuple))


def _name(above: str, key: Any, path: Path) -> str:
    name = f"{above}.{key}" if above else str(key)
    if len(name) > MAX_TEXT:
        raise CheckpointError(f"a name has more than the {MAX_TEXT:,} characters that are read", where=str(path))
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()


def _rebuilt(record: Record, name: str, path: Path, size_of: SizeOf) -> TensorInfo:
    """What `torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...)` would be."""
    try:
        storage, offset, shape, strides = record.args[:4]
        if len(shape) > MAX_DIMENSIONS or len(strides) != len(shape):
            raise ValueError(f"it has more than {MAX_DIMENSIONS} dimensions, or not one stride for each")
        _, kind, key, _, num_elements = storage[:5]  # ("storage", torch.FloatStorage, key, device, number of elements)
        dtype = kind.path.rpartition(".")[2].removesuffix("Storage")
        if dtype == "Untyped":  # sizes are in bytes then, and the type stands behind the hooks
            dtype = record.args[6].path.rpartition(".")[2]
        info = _info(dtype, shape)
        width = _BYTES.get(info.dtype, 1)
        available = num_elements // width if kind.path.endswith("UntypedStorage") else num_elements
        if not are_sizes([offset, *strides, num_elements]) or not isinstance(key, str | int):
            raise ValueError("its place in its storage is not given by whole numbers")
        last = offset + sum((size - 1) * stride for size, stride in zip(info.shape, strides, strict=True))
        if info.num_elements and last >= available:
            raise ValueError("it goes beyond the end of its storage")
        if size_of(str(key)) < available * width:
            raise ValueError(f"its storage takes {available * width:,} bytes, and the file has {size_of(str(key)):,}")
    except (ValueError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(f"the tensor {name!r} is not sound: {error}", where=str(path)) from error
    return info


def _info(dtype: str, shape: Any) -> TensorInfo:
    """A tensor of a type as torch or a pickle names it.

    Raises:
        ValueError: The shape is none.
    """
    shape = shape.args[0] if isinstance(shape, Record) and shape.args else shape
    sizes = list(shape) if isinstance(shape, tuple | list) and len(shape) <= MAX_DIMENSIONS else None
    if sizes is None or not are_sizes(sizes) or math.prod(sizes) >= 2**63:
        raise ValueError(f"its shape is not a list of at most {MAX_DIMENSIONS} sizes with less than 2**63 elements")
    known = _DTYPES.get(dtype, dtype if dtype.isidentifier() and len(dtype) <= _MAX_DTYPE else "unknown")
    return TensorInfo(known, tuple(sizes), math.prod(sizes) * _BYTES.get(known, 0))


def _distributed_checkpoint(directory: Path) -> ForeignTensors:
    """`.metadata` of `torch.distributed.checkpoint`: a pickle of `Metadata(state_dict_metadata=...)`."""
    path = directory / DCP_METADATA
    try:
        content = io.BytesIO(read_bytes(path, MAX_PICKLE_BYTES))
    except (OSError, UnsoundError) as error:
        raise CheckpointError(f"its description cannot be read: {error}", where=str(path)) from error
    value = read_inert(content, path)
    entries = value.attribute("state_dict_metadata") if isinstance(value, Record) else None
    if not isinstance(entries, dict):
        raise CheckpointError("it does not describe a state dict", where=str(path))
    tensors = {}
    for key, entry in entries.items():
        if isinstance(entry, Record) and entry.path.endswith(".TensorStorageMetadata"):
            name = _name("", key, path)
            try:
                tensors[name] = _info(_dcp_dtype(entry.attribute("properties")), entry.attribute("size"))
            except (ValueError, AttributeError) as error:
                raise CheckpointError(f"the tensor {name!r} is not sound: {error}", where=str(path)) from error
    return ForeignTensors("torch.distributed.checkpoint directory", tensors, {})


def _dcp_dtype(properties: Any) -> str:
    state = getattr(properties, "state", None)
    first = state[0] if isinstance(state, tuple) and state else properties and properties.attribute("dtype")
    # A dtype is pickled as the global `torch.float32`, so it is a class of records here.
    return str(getattr(first, "path", "")).rpartition(".")[2]
