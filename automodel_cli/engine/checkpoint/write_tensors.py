"""Writes tensors, or blocks of them, as safetensors files; or whole ones as `torch.save` does, for tools that need it.

Equal tensors give equal bytes, and so equal hashes. A file of blocks says in its header's metadata where each of them
begins in its tensor, as `torch.distributed.checkpoint` does (`HuggingFaceStorageReader` reads it); any reader of
safetensors reads the file, too. A file of whole tensors is what `safetensors.torch.save_file` writes, byte for byte.
The hash is that of the bytes in memory: a disk that returns others is found out when they are read.
"""

from __future__ import annotations

import errno
import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from automodel_cli.engine.checkpoint.manifest import FileRecord, sha256_of
from automodel_cli.engine.checkpoint.stored_tensors import OFFSETS_KEY, SHARDING_KEY
from automodel_cli.errors import CheckpointError

_ALIGNMENT = 8
DTYPES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8"},
    **{torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL"},
    **{torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.complex64: "C64"},
}
# From the widest to the narrowest, so that every tensor is aligned; the order of safetensors itself.
_ORDER = ["U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16"]
_ORDER += ["F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"]


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], offsets: Mapping[str, tuple[int, ...]] | None = None
) -> FileRecord:
    """Writes one file; it is not synchronised.

    Args:
        path: Must not exist.
        tensors: By name; copied to the host one at a time.
        offsets: Where each begins in the tensor that it is a block of; None for whole tensors.

    Returns:
        Size and hash of what was written.

    Raises:
        CheckpointError: safetensors has no name for the type of a tensor.
        OSError: It cannot be written.
    """
    names = sorted(tensors, key=lambda name: (_ORDER.index(_dtype(name, tensors[name])), name))
    digest = hashlib.sha256()
    with path.open("xb") as file:
        _write(file, digest, _header(names, tensors, offsets))
        for name in names:
            if tensors[name].numel():
                _write(file, digest, _bytes(tensors[name]))
        return FileRecord(file.tell(), digest.hexdigest())


def _write(file: IO[bytes], digest: Any, content: Any) -> None:
    file.write(content)
    digest.update(content)


def _dtype(name: str, tensor: torch.Tensor) -> str:
    try:
        return DTYPES[tensor.dtype]
    except KeyError:
        raise CheckpointError(f"{name} is of type {tensor.dtype}, which safetensors cannot hold") from None


def _header(
    names: list[str], tensors: Mapping[str, torch.Tensor], offsets: Mapping[str, tuple[int, ...]] | None
) -> bytes:
    # `format: pt` is what Hugging Face loaders look for before they read a file.
    metadata = {"format": "pt"}
    if offsets is not None:
        places = {name: {OFFSETS_KEY: list(offsets[name])} for name in names}
        metadata = {SHARDING_KEY: json.dumps(places), "DCP_VERSION": "1.0", **metadata}
    entries: dict[str, Any] = {"__metadata__": metadata}
    begin = 0
    for name in names:
        tensor = tensors[name]
        end = begin + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _dtype(name, tensor),
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _bytes(tensor: torch.Tensor) -> Any:
    """The content in row-major order, as an array of bytes."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def write_state_dict(path: Path, tensors: Mapping[str, torch.Tensor]) -> FileRecord:
    """Writes one file; it is not synchronised.

    Args:
        path: Must not exist.
        tensors: By name; whole.

    Raises:
        OSError: It cannot be written.
    """
    alone = {name: _alone(tensor) for name, tensor in tensors.items()}
    with path.open("xb") as file:
        # As if the file had a name that says nothing: torch writes the name into it.
        try:
            torch.save(alone, file)
        except RuntimeError as error:
            # A write that failed comes out of torch's archive as a position that it did not expect.
            reason = error.__context__
            raise reason if isinstance(reason, OSError) else OSError(errno.EIO, f"torch.save: {error}") from error
    return FileRecord(path.stat().st_size, sha256_of(path))


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """On the host, without what else its memory holds: torch saves the whole of it."""
    found = tensor.detach().cpu().contiguous()
    return found if found.untyped_storage().nbytes() == found.numel() * found.element_size() else found.clone()
