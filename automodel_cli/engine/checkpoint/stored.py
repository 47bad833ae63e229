"""Which tensors stand in some safetensors files, whole or cut into blocks, and where. No torch.

A tensor that several ranks wrote is whole again here: its shape is that of all its blocks together. Blocks
that overlap, leave a hole or differ in type are refused, so whoever reads on may trust them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from automodel_cli.engine.checkpoint.tensor_header import TensorInfo, read_header
from automodel_cli.engine.distributed.region import Region, tiles
from automodel_cli.errors import CheckpointError


@dataclass(frozen=True)
class Piece:
    """A block of a tensor in a file.

    Args:
        file: The safetensors file.
        begin: Where the block begins in it, in bytes.
        region: Where it stands in the tensor.
    """

    file: Path
    begin: int
    region: Region


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in files: what it is, and its blocks, each element in exactly one of them."""

    info: TensorInfo
    pieces: tuple[Piece, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor."""
        return self.info.shape

    def pieces_of(self, region: Region) -> Iterator[tuple[Piece, Region]]:
        """The blocks that share something with a region, and what they share."""
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
        raise _refused(name, pieces, f"is of several types or dimensions: {sorted(kinds)}")
    shape = tuple(
        max(begin + size for begin, size in zip(begins, sizes, strict=True))
        for begins, sizes in zip(
            zip(*(piece.region.offsets for piece in pieces), strict=True),
            zip(*(piece.region.sizes for piece in pieces), strict=True),
            strict=True,
        )
    )
    if (len(pieces) > 1 and math.prod(shape) == 0) or not tiles(shape, [piece.region for piece in pieces]):
        raise _refused(name, pieces, f"{shape} is not covered exactly once")
    first = blocks[0][0]
    if len(pieces) == 1:
        return StoredTensor(first, pieces)
    total = TensorInfo(first.dtype, shape, sum(info.num_bytes for info, _ in blocks))
    return StoredTensor(total, pieces)


def _refused(name: str, pieces: tuple[Piece, ...], what: str) -> CheckpointError:
    short = name if len(name) <= 100 else f"{name[:97]}..."
    return CheckpointError(
        f"the tensor {short!r}, of {len(pieces)} blocks, {what}",
        where=str(pieces[0].file.parent),
        help="a file is missing, or does not belong here; use another checkpoint",
    )
