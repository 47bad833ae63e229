"""Tensors that stay in their files until they are asked for, whole or in part.

Every rank of a run reads what it needs of a sharded checkpoint, and no more. What is given out is a copy in
memory: a file that is removed later, as old checkpoints are, takes nothing away.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from automodel_cli.engine.checkpoint.shard_file import DTYPES
from automodel_cli.engine.checkpoint.stored import Piece, StoredTensor, stored_tensors
from automodel_cli.engine.distributed.region import Region
from automodel_cli.errors import CheckpointError

_TORCH_TYPES = {name: dtype for dtype, name in DTYPES.items()}


class LazyTensors(Mapping[str, torch.Tensor]):
    """The tensors of some safetensors files by name. Can be pickled; whoever gets it opens the files anew.

    Args:
        files: Read by their headers only.

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
        """Of a whole tensor."""
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
