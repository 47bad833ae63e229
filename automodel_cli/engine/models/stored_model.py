"""The weights of a checkpoint as a model has them, whole or in part, while they stay in their files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import nn

from automodel_cli.engine.distributed.parts import TensorSource
from automodel_cli.engine.distributed.region import Region
from automodel_cli.engine.models.export import is_turned, refuse_another_architecture, turned


class LazyTensorSource(TensorSource, Protocol):
    """Tensors by name that are read in part, such as those of a checkpoint's files."""

    def __iter__(self) -> Iterator[str]:
        """The names."""

    def __getitem__(self, name: str) -> torch.Tensor:
        """A whole tensor."""

    def without_content(self, name: str) -> torch.Tensor:
        """One of its shape and type on the meta device."""


class StoredModel:
    """The weights of a checkpoint as a model has them: parts of them in its layout, for ranks that hold parts.

    Args:
        model: Spread over the ranks.
        own: Its tensors, as this rank holds them.
        stored: As `export_model` wrote them.

    Raises:
        CheckpointError: They are of another architecture; all differences are told.
    """

    def __init__(self, model: nn.Module, own: Mapping[str, torch.Tensor], stored: LazyTensorSource) -> None:
        self._model, self._stored = model, stored
        given = {name: turned(model, name, stored.without_content(name)) for name in stored}
        refuse_another_architecture(model, own, given, stored)

    def shape(self, name: str) -> Sequence[int]:
        """Of a whole tensor of the model."""
        return turned(self._model, name, self._stored.without_content(name)).shape

    def region(self, name: str, region: Region) -> torch.Tensor:
        """A part of a tensor of the model, on the CPU."""
        if is_turned(self._model, name):
            return self._stored.region(name, region.transposed()).T
        return self._stored.region(name, region)
