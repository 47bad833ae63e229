"""Which tensors safetensors files hold, whole or in blocks, and where; read from their headers alone. No torch.

The header is untrusted: its size is bounded before it is read, and names, types, shapes and offsets are checked against
each other and the file's size. Blocks of a tensor that overlap, leave a hole or differ in type are refused. Format:
https://huggingface.co/docs/safetensors (8 bytes of length, JSON, then the tensors without gaps).
"""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automodel_cli.engine.bounded import UnsoundError, open_regular, parse_json
from automodel_cli.engine.distributed.region import Region, tiles
from automodel_cli.errors import CheckpointError

MAX_HEADER_BYTES = 32 * 2**20  # the format allows three times as much, for which there is no use
MAX_TENSORS = 100_000
# torch.distributed.checkpoint, and amcli, store under these keys where each block begins in its tensor.
SHARDING_KEY = "DCP_SHARDING_INFO"
OFFSETS_KEY = "saved_offsets"
MAX_DIMENSIONS = 64
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


def read_header(path: Path) -> TensorHeader:
    """All tensors of a safetensors file, and where they belong if they are blocks of larger ones.

    Raises:
        CheckpointError: The header contradicts the format, itself or the file's size.
        OSError: The file cannot be read.
    """
    with io.BufferedReader(_opened(path)) as file:
        file_bytes = os.fstat(file.fileno()).st_size
        length = file.read(_LENGTH_BYTES)
        if len(length) < _LENGTH_BYTES:
            raise _refused(path, f"the file has {file_bytes} bytes, and the header's length alone takes 8")
        header_bytes = struct.unpack("<Q", length)[0]
        limit = min(MAX_HEADER_BYTES, file_bytes - _LENGTH_BYTES)
        if header_bytes > limit:
            raise _refused(path, f"the header claims {header_bytes:,} bytes, and at most {limit:,} are possible")
        raw = file.read(header_bytes)
    try:
        entries = parse_json(raw)
        if not isinstance(entries, dict):
            raise ValueError("it is not an object")
        metadata = entries.pop("__metadata__", None)
        if len(entries) > MAX_TENSORS:
            raise ValueError(f"it lists {len(entries):,} tensors, and at most {MAX_TENSORS:,} are read")
        data_begin = _LENGTH_BYTES + header_bytes
        tensors = {name: _tensor(_short(name), entry, data_begin) for name, entry in entries.items()}
        offsets = _offsets(metadata, tensors)
    except ValueError as error:
        raise _refused(path, str(error)) from None
    _check_offsets(path, tensors, data_begin, file_bytes)
    return TensorHeader(tensors, offsets)


def _offsets(metadata: Any, tensors: dict[str, TensorInfo]) -> dict[str, tuple[int, ...]] | None:
    """Where each tensor begins in the one that it is a block of; None if the file says nothing about it.

    Raises:
        ValueError: It says so for some tensors only, or by something that is no position.
    """
    text = metadata.get(SHARDING_KEY) if isinstance(metadata, dict) else None
    if text is None:
        return None
    places = parse_json(text.encode()) if isinstance(text, str) else None
    found = {}
    for name, tensor in tensors.items():
        place = places.get(name) if isinstance(places, dict) else None
        offsets: Any = place.get(OFFSETS_KEY) if isinstance(place, dict) else None
        if not are_sizes(offsets) or len(offsets) != len(tensor.shape):
            raise ValueError(f"{_short(name)!r} has no place in its tensor ({SHARDING_KEY})")
        found[name] = tuple(offsets)
    return found


def _opened(path: Path) -> io.FileIO:
    try:
        return open_regular(path)
    except UnsoundError as error:
        raise _refused(path, str(error)) from None


def _tensor(name: str, entry: Any, data_begin: int) -> TensorInfo:
    """What a tensor is, and where it begins in the file.

    Raises:
        ValueError: The entry is not what the format asks for.
    """
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r} must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise ValueError(f"{name!r} has the unknown dtype {str(dtype)[:40]!r}")
    if not are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"{name!r} has a shape that is not a list of at most {MAX_DIMENSIONS} sizes")
    if not are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{name!r} has data_offsets that are not two positions")
    begin, end = offsets
    if math.prod(shape) * _BITS[dtype] != 8 * (end - begin):
        raise ValueError(
            f"{name!r} of {dtype} {_short(str(shape))} does not take the {end - begin} bytes of its offsets"
        )
    return TensorInfo(dtype, tuple(shape), end - begin, data_begin + begin)


def _short(name: str) -> str:
    return name if len(name) <= 100 else f"{name[:97]}..."


def are_sizes(value: Any) -> bool:
    """Whether it is a list of whole numbers from 0 to 2**63 - 1."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_offsets(path: Path, tensors: dict[str, TensorInfo], data_begin: int, file_bytes: int) -> None:
    """Tensors must fill the rest of the file without gaps and without overlaps."""
    end = data_begin
    for begin, num_bytes, name in sorted((item.begin or 0, item.num_bytes, name) for name, item in tensors.items()):
        if begin != end:
            kind = "overlaps the one before it" if begin < end else "leaves a gap before it"
            place, expected = begin - data_begin, end - data_begin
            raise _refused(path, f"{_short(name)!r} begins at byte {place:,}, which {kind} (ends at {expected:,})")
        end += num_bytes
    if end != file_bytes:
        found, rest = end - data_begin, file_bytes - data_begin
        raise _refused(path, f"the tensors take {found:,} bytes, and the file holds {rest:,}")


def _refused(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"not a sound safetensors header: {reason}", where=str(path), help="use another checkpoint")


@dataclass(frozen=True)
class Piece:
    """A block of a tensor in a file.

    Args:
        file: The safetensors file.
        begin: Offset of the block in the file, in bytes.
        region: The part of the tensor that it is.
    """

    file: Path
    begin: int
    region: Region


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in files; each of its elements is in exactly one block."""

    info: TensorInfo
    pieces: tuple[Piece, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole tensor."""
        return self.info.shape

    def pieces_of(self, region: Region) -> Iterator[tuple[Piece, Region]]:
        """The blocks that overlap a region, and the overlaps."""
        for piece in self.pieces:
            common = piece.region.common(region)
            if common is not None:
                yield piece, common


def stored_tensors(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """All tensors of some files by name, in the order of the files.

    Raises:
        CheckpointError: A header is not sound, or the blocks of a tensor do not make up a whole one.
        OSError: A file cannot be read.
    """
    found: dict[str, list[tuple[TensorInfo, Piece]]] = {}
    for file in files:
        header = read_header(file)
        for name, info in header.tensors.items():
            offsets = (0,) * len(info.shape) if header.offsets is None else header.offsets[name]
            piece = Piece(file, info.begin or 0, Region(offsets, info.shape))
            found.setdefault(name, []).append((info, piece))
    return {name: _joined(name, blocks) for name, blocks in found.items()}


def files_of_parts(directory: Path) -> list[Path]:
    """The safetensors files of a directory, if they hold blocks of tensors that are whole together; else none.

    Raises:
        CheckpointError: A header is not sound.
    """
    files = sorted(directory.glob("*.safetensors"))
    return files if files and all(read_header(file).offsets is not None for file in files) else []


def _joined(name: str, blocks: list[tuple[TensorInfo, Piece]]) -> StoredTensor:
    pieces = tuple(piece for _, piece in blocks)
    if len(pieces) == 1 and not any(pieces[0].region.offsets):
        return StoredTensor(blocks[0][0], pieces)
    kinds = {(info.dtype, len(info.shape)) for info, _ in blocks}
    if len(kinds) > 1:
        raise _unfitting(name, pieces, f"is of several types or dimensions: {sorted(kinds)}")
    shape = tuple(
        max(begin + size for begin, size in zip(begins, sizes, strict=True))
        for begins, sizes in zip(
            zip(*(piece.region.offsets for piece in pieces), strict=True),
            zip(*(piece.region.sizes for piece in pieces), strict=True),
            strict=True,
        )
    )
    if (len(pieces) > 1 and math.prod(shape) == 0) or not tiles(shape, [piece.region for piece in pieces]):
        raise _unfitting(name, pieces, f"{shape} is not covered exactly once")
    first = blocks[0][0]
    if len(pieces) == 1:
        return StoredTensor(first, pieces)
    total = TensorInfo(first.dtype, shape, sum(info.num_bytes for info, _ in blocks))
    return StoredTensor(total, pieces)


def _unfitting(name: str, pieces: tuple[Piece, ...], what: str) -> CheckpointError:
    return CheckpointError(
        f"the tensor {_short(name)!r}, of {len(pieces)} blocks, {what}",
        where=str(pieces[0].file.parent),
        help="a file is missing, or does not belong here; use another checkpoint",
    )
