"""Reads what a safetensors file says about its tensors, without reading a tensor.

The header is untrusted: its size is bounded before it is read, and names, types, shapes and
offsets are checked against each other and the file's size. Format:
https://huggingface.co/docs/safetensors (8 bytes of length, JSON, then the tensors without gaps).
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from automodel_cli.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
# Where torch.distributed.checkpoint, and we, keep the place of each block of a file in its tensor.
SHARDING_KEY = "DCP_SHARDING_INFO"
OFFSETS_KEY = "saved_offsets"
_MAX_DIMENSIONS = 64
_LENGTH_BYTES = 8

_BITS = {
    "F4": 4,
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file.

    Args:
        dtype: As the format names it, such as `F32` or `BF16`.
        shape: Its dimensions.
        num_bytes: Its size in the file.
        begin: Where it begins in the file, in bytes; None if it is not one piece of a file.
    """

    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    begin: int | None = None

    @property
    def num_elements(self) -> int:
        """Product of the dimensions; 1 for a scalar."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class TensorHeader:
    """What a file says about its tensors.

    Args:
        tensors: By name.
        offsets: Where each begins in the tensor that it is a block of; None for a file of whole tensors.
    """

    tensors: dict[str, TensorInfo]
    offsets: dict[str, tuple[int, ...]] | None


def read_tensor_header(path: Path) -> dict[str, TensorInfo]:
    """All tensors of a safetensors file, by name, each as it stands in the file.

    Raises:
        CheckpointError: The header contradicts the format, itself or the file's size.
        OSError: The file cannot be read.
    """
    return read_header(path).tensors


def read_header(path: Path) -> TensorHeader:
    """All tensors of a safetensors file, and where they belong if they are blocks of larger ones.

    Raises:
        CheckpointError: The header contradicts the format, itself or the file's size.
        OSError: The file cannot be read.
    """
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        length = file.read(_LENGTH_BYTES)
        if len(length) < _LENGTH_BYTES:
            raise _refused(path, f"the file has {file_bytes} bytes, and the header's length alone takes 8")
        header_bytes = struct.unpack("<Q", length)[0]
        limit = min(MAX_HEADER_BYTES, file_bytes - _LENGTH_BYTES)
        if header_bytes > limit:
            raise _refused(path, f"the header claims {header_bytes:,} bytes, and at most {limit:,} are possible")
        raw = file.read(header_bytes)
    try:
        entries = json.loads(raw, object_pairs_hook=_without_repeats)
        if not isinstance(entries, dict):
            raise ValueError("it is not an object")
        metadata = entries.pop("__metadata__", None)
        spans = {name: _span(_short(name), entry) for name, entry in entries.items()}
        offsets = _offsets(metadata, {name: tensor for name, (_, tensor) in spans.items()})
    except (ValueError, RecursionError) as error:
        raise _refused(path, str(error)) from None
    data_begin = _LENGTH_BYTES + header_bytes
    _check_offsets(path, spans, data_bytes=file_bytes - data_begin)
    tensors = {name: replace(tensor, begin=data_begin + begin) for name, (begin, tensor) in spans.items()}
    return TensorHeader(tensors, offsets)


def _offsets(metadata: Any, tensors: dict[str, TensorInfo]) -> dict[str, tuple[int, ...]] | None:
    """Where each tensor begins in the one that it is a block of; None if the file says nothing about it.

    Raises:
        ValueError: It says so for some tensors only, or by something that is no position.
    """
    text = metadata.get(SHARDING_KEY) if isinstance(metadata, dict) else None
    if text is None:
        return None
    places = json.loads(text) if isinstance(text, str) else None
    found = {}
    for name, tensor in tensors.items():
        place = places.get(name) if isinstance(places, dict) else None
        offsets: Any = place.get(OFFSETS_KEY) if isinstance(place, dict) else None
        if not _are_sizes(offsets) or len(offsets) != len(tensor.shape):
            raise ValueError(f"{_short(name)!r} has no place in its tensor ({SHARDING_KEY})")
        found[name] = tuple(offsets)
    return found


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _span(name: str, entry: Any) -> tuple[int, TensorInfo]:
    """Where a tensor begins, and what it is.

    Raises:
        ValueError: The entry is not what the format asks for.
    """
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r} must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise ValueError(f"{name!r} has the unknown dtype {str(dtype)[:40]!r}")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"{name!r} has a shape that is not a list of at most {_MAX_DIMENSIONS} sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{name!r} has data_offsets that are not two positions")
    begin, end = offsets
    if math.prod(shape) * _BITS[dtype] != 8 * (end - begin):
        raise ValueError(
            f"{name!r} of {dtype} {_short(str(shape))} does not take the {end - begin} bytes of its offsets"
        )
    return begin, TensorInfo(dtype, tuple(shape), end - begin)


def _short(name: str) -> str:
    return name if len(name) <= 100 else f"{name[:97]}..."


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_offsets(path: Path, spans: dict[str, tuple[int, TensorInfo]], data_bytes: int) -> None:
    """Tensors must fill the rest of the file without gaps and without overlaps."""
    position = 0
    for name, (begin, tensor) in sorted(spans.items(), key=lambda item: (item[1][0], item[1][1].num_bytes)):
        if begin != position:
            kind = "overlaps the one before it" if begin < position else "leaves a gap before it"
            raise _refused(path, f"{_short(name)!r} begins at byte {begin:,}, which {kind} (ends at {position:,})")
        position += tensor.num_bytes
    if position != data_bytes:
        raise _refused(path, f"the tensors take {position:,} bytes, and the file holds {data_bytes:,}")


def _refused(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"not a sound safetensors header: {reason}", where=str(path), help="use another checkpoint")
