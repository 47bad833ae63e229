"""Writes a state dict as `torch.save` does, for tools that read nothing else.

Tensors by name and nothing more, so that `torch.load(..., weights_only=True)` reads it, which executes nothing.
Equal tensors give equal bytes.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path

import torch

from automodel_cli.engine.checkpoint.manifest import FileRecord, sha256_of


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
