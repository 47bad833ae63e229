"""A copy of what a rank has to write, in the host's memory, so that training may go on while it is written.

The buffers are kept from one save to the next: the memory is the size of what one rank writes, once. From a GPU
they are pinned, so that all copies are queued and waited for together.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from automodel_cli.engine.checkpoint.share import Share, TensorFile
from automodel_cli.errors import CheckpointError


class HostCopy:
    """Buffers for one share at a time: the copy of the next share takes the place of the last one."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], torch.Tensor] = {}

    def of(self, share: Share) -> Share:
        """The same share with tensors of its own; the given ones may change afterwards.

        Raises:
            CheckpointError: There is no memory for it.
        """
        try:
            files = tuple(self._copied(file) for file in share.files)
        except (MemoryError, RuntimeError) as error:  # torch has no type of its own for a host that is full
            self._buffers.clear()
            raise CheckpointError(
                f"there is no room in the host's memory for a copy of {share.num_bytes:,} bytes: {error}",
                help="checkpoint.is_async=false writes without a copy",
            ) from error
        if any(tensor.is_cuda for file in share.files for tensor in file.tensors.values()):
            torch.cuda.current_stream().synchronize()
        return replace(share, files=files)

    def _copied(self, file: TensorFile) -> TensorFile:
        return replace(file, tensors={name: self._copy(file.name, name, item) for name, item in file.tensors.items()})

    def _copy(self, file: str, name: str, tensor: torch.Tensor) -> torch.Tensor:
        buffer = self._buffers.get((file, name))
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[file, name] = buffer
        return buffer.copy_(tensor.detach(), non_blocking=tensor.is_cuda)
