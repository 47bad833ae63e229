"""Weights read from files, as a model has them: those of our checkpoints in part, those of other tools renamed.

Names of other tools' weights are brought to those of our checkpoints: wrappers' prefixes go (`module.`, `_orig_mod.`),
the base model's prefix comes or goes, stored causal masks and tied output layers are dropped. Everything else must fit
exactly: a name too many or too few, or another shape, is refused by `import_tensors`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from automodel_cli.engine.distributed.region import LazyTensorSource, Region
from automodel_cli.engine.models.export import (
    import_tensors,
    is_stored_transposed,
    refuse_another_architecture,
    stored_tensors_of,
    transposed,
)
from automodel_cli.errors import CheckpointError

_WRAPPERS = ("module.", "_orig_mod.")
# Causal masks that old versions of transformers stored with GPT-2's weights.
_MASKS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")
_HEADS = ("lm_head.weight", "embed_out.weight")


class StoredModel:
    """Weights of a checkpoint in the layout of a model, read in part by ranks that hold parts of it.

    Args:
        model: Spread over the ranks.
        own: Its tensors, as this rank holds them.
        stored: As `export_model` wrote them.

    Raises:
        CheckpointError: They are of another architecture; all differences are listed.
    """

    def __init__(self, model: nn.Module, own: Mapping[str, torch.Tensor], stored: LazyTensorSource) -> None:
        self._model, self._stored = model, stored
        given = {name: transposed(model, name, stored.without_content(name)) for name in stored}
        refuse_another_architecture(model, own, given, stored)

    def shape(self, name: str) -> Sequence[int]:
        """Shape of a whole tensor of the model."""
        return transposed(self._model, name, self._stored.without_content(name)).shape

    def region(self, name: str, region: Region) -> torch.Tensor:
        """A part of a tensor of the model, on the CPU."""
        if is_stored_transposed(self._model, name):
            return self._stored.region(name, region.transposed()).T
        return self._stored.region(name, region)


def adopt_weights(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copies foreign weights into a model of the same architecture; floats take the model's type.

    Raises:
        CheckpointError: They are of another architecture; all differences are listed, the model is unchanged.
    """
    import_tensors(model, adopted(model, tensors))


def adopted(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Foreign weights under the names of a checkpoint of this model, floats in its types.

    Args:
        model: May be without content.
        tensors: As another tool wrote them.

    Raises:
        CheckpointError: Two of them stand for one tensor of the model.
    """
    own = stored_tensors_of(model)
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        target = _own_name(_unwrapped(name), own)
        if target not in own and target.endswith((*_MASKS, ".rotary_emb.inv_freq")):
            continue
        if target in renamed:
            raise CheckpointError(f"two tensors of the file stand for {target}: {name} is the second")
        renamed[target] = tensor
    for head in _HEADS:
        if head in renamed and head not in own and _is_tied_copy(renamed, head):
            del renamed[head]
    return {name: _converted(tensor, own.get(name)) for name, tensor in renamed.items()}


def _unwrapped(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name.replace("._orig_mod.", ".")


def _own_name(name: str, own: Mapping[str, torch.Tensor]) -> str:
    """The model's name for a tensor whose file may have been written by the base model, without the head."""
    if name in own:
        return name
    prefixes = {own_name.partition(".")[0] for own_name in own}
    return next((f"{prefix}.{name}" for prefix in sorted(prefixes) if f"{prefix}.{name}" in own), name)


def _is_tied_copy(tensors: Mapping[str, torch.Tensor], head: str) -> bool:
    """Whether the output layer is a copy of another tensor of its shape, the token embedding."""
    others = (tensor for name, tensor in tensors.items() if name != head and tensor.shape == tensors[head].shape)
    return any(torch.equal(tensor, tensors[head]) for tensor in others)


def _converted(tensor: torch.Tensor, own: torch.Tensor | None) -> torch.Tensor:
    return tensor.to(own.dtype) if own is not None and own.is_floating_point() else tensor
