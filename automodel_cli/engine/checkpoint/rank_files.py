"""The files that one rank writes of a checkpoint, and a copy of their tensors in the host's memory.

With the copy, training goes on while the files are written. Its buffers are kept from one save to the next, so it
takes the size of what one rank writes, once. From a GPU they are pinned, so all copies are queued before any is
waited for.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from automodel_cli.engine import durable
from automodel_cli.engine.checkpoint import layout
from automodel_cli.engine.checkpoint.manifest import FileRecord
from automodel_cli.engine.checkpoint.snapshot import Snapshot
from automodel_cli.engine.checkpoint.write_tensors import write_state_dict, write_tensors
from automodel_cli.engine.distributed.region import Part
from automodel_cli.errors import CheckpointError


@dataclass(frozen=True)
class TensorFile:
    """One file of tensors.

    Args:
        name: Its path relative to the checkpoint.
        tensors: By name; they may be the live ones of a model, so they are written before its next step.
        offsets: Where each begins in the tensor that it is a block of; None for whole tensors.
    """

    name: str
    tensors: Mapping[str, torch.Tensor]
    offsets: Mapping[str, tuple[int, ...]] | None = None

    def write(self, directory: Path) -> FileRecord:
        """Writes it below a directory, in the format of its name.

        Raises:
            OSError: It cannot be written.
        """
        if self.name == layout.PICKLED_MODEL_FILE:
            return write_state_dict(directory / self.name, self.tensors)
        return write_tensors(directory / self.name, self.tensors, self.offsets)


@dataclass(frozen=True)
class RankFiles:
    """What one rank writes; the files of all ranks of a run make up a checkpoint.

    Args:
        texts: Content of text files by path.
        files: Files of tensors.
    """

    texts: Mapping[str, str]
    files: tuple[TensorFile, ...]

    @property
    def num_bytes(self) -> int:
        """Size of the tensors."""
        return sum(tensor.numel() * tensor.element_size() for file in self.files for tensor in file.tensors.values())

    def write(self, directory: Path) -> dict[str, FileRecord]:
        """Writes all files below a directory, and gives size and hash of each; `sync` puts them onto the disk.

        Raises:
            OSError: One cannot be written.
        """
        records = {}
        for name in (*self.texts, *(file.name for file in self.files)):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
        for name, text in self.texts.items():
            content = text.encode()
            (directory / name).write_bytes(content)
            records[name] = FileRecord(len(content), hashlib.sha256(content).hexdigest())
        for file in self.files:
            records[file.name] = file.write(directory)
        return records

    def sync(self, directory: Path) -> None:
        """Returns once the disk has all files that `write` wrote."""
        for name in (*self.texts, *(file.name for file in self.files)):
            durable.sync_file(directory / name)


def whole_checkpoint(snapshot: Snapshot, model_file: str = layout.MODEL_FILE) -> RankFiles:
    """A whole checkpoint, written by one process; the weights go into `MODEL_FILE` or `PICKLED_MODEL_FILE`."""
    files = [TensorFile(model_file, snapshot.model_tensors)]
    if not snapshot.is_weights_only:
        files.append(TensorFile(layout.OPTIMIZER_FILE, snapshot.optim_tensors))
        generators = (snapshot.rng_tensors, *snapshot.peer_rng_tensors)
        files += [TensorFile(layout.rng_file(rank), tensors) for rank, tensors in enumerate(generators)]
    return RankFiles(texts_of(snapshot), tuple(files))


def texts_of(snapshot: Snapshot) -> dict[str, str]:
    """The text files of a checkpoint."""
    texts = {
        layout.CONFIG_FILE: snapshot.config_yaml,
        layout.TRAIN_STATE_FILE: json.dumps(snapshot.train_state, indent=2) + "\n",
    }
    if snapshot.model_config is not None:
        texts[layout.MODEL_CONFIG_FILE] = json.dumps(snapshot.model_config, indent=2) + "\n"
    return texts


def files_of_parts(whole: str, rank: int, parts: Iterable[Part]) -> list[TensorFile]:
    """One rank's blocks of tensors as files; further blocks of a tensor are in further files.

    Args:
        whole: `layout.MODEL_FILE` or `layout.OPTIMIZER_FILE`.
        rank: The rank that writes them.
        parts: Blocks of any number of tensors.
    """
    files: list[dict[str, Part]] = []
    for part in parts:
        free = next((file for file in files if part.name not in file), None)
        if free is None:
            files.append(free := {})
        free[part.name] = part
    return [
        TensorFile(
            layout.part_file(whole, rank, number),
            {name: part.tensor for name, part in file.items()},
            {name: part.region.offsets for name, part in file.items()},
        )
        for file, number in zip(files, itertools.count(1), strict=False)
    ]


class HostCopy:
    """Buffers for one save at a time: the next copy overwrites the last one."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], torch.Tensor] = {}

    def of(self, rank_files: RankFiles) -> RankFiles:
        """The same files with tensors of their own; the given tensors may change afterwards.

        Raises:
            CheckpointError: There is no memory for it.
        """
        try:
            files = tuple(self._copied(file) for file in rank_files.files)
        except (MemoryError, RuntimeError) as error:  # torch has no type of its own for a host that is full
            self._buffers.clear()
            raise CheckpointError(
                f"there is no room in the host's memory for a copy of {rank_files.num_bytes:,} bytes: {error}",
                help="checkpoint.is_async=false writes without a copy",
            ) from error
        if any(tensor.is_cuda for file in rank_files.files for tensor in file.tensors.values()):
            torch.cuda.current_stream().synchronize()
        return replace(rank_files, files=files)

    def _copied(self, file: TensorFile) -> TensorFile:
        return replace(file, tensors={name: self._copy(file.name, name, item) for name, item in file.tensors.items()})

    def _copy(self, file: str, name: str, tensor: torch.Tensor) -> torch.Tensor:
        buffer = self._buffers.get((file, name))
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[file, name] = buffer
        return buffer.copy_(tensor.detach(), non_blocking=tensor.is_cuda)
