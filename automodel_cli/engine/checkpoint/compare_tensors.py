"""What differs between the tensors of two places: names, shapes, types, and how far the values moved."""

from __future__ import annotations

import re
from dataclasses import dataclass

from automodel_cli.engine.checkpoint.foreign import ForeignTensors
from automodel_cli.engine.checkpoint.tensor_stats import relative_change

_LAYER = re.compile(r"^(.*?\.\d+)\.")


@dataclass(frozen=True)
class TensorDifferences:
    """What differs.

    Args:
        only_old: Names that only the first place has.
        only_new: Names that only the second has.
        reshaped: `name: (2, 3) F32 -> (3, 3) F32`, one line for each.
        change_by_layer: Largest relative change of a tensor (norm of the difference over the norm of
            the old one) by layer, in the order of the second place.
        unchanged: How many tensors are equal by value.
        uncompared: Names whose values cannot be read here.
    """

    only_old: tuple[str, ...]
    only_new: tuple[str, ...]
    reshaped: tuple[str, ...]
    change_by_layer: dict[str, float]
    unchanged: int
    uncompared: tuple[str, ...]


def compare_tensors(old: ForeignTensors, new: ForeignTensors) -> TensorDifferences:
    """Compares all tensors of two places by name."""
    reshaped, uncompared = [], []
    changes: dict[str, float] = {}
    unchanged = 0
    for name, info in new.tensors.items():
        before = old.tensors.get(name)
        if before is None:
            continue
        if (before.shape, before.dtype) != (info.shape, info.dtype):
            reshaped.append(f"{name}: {before.shape} {before.dtype} -> {info.shape} {info.dtype}")
        if before.shape != info.shape:
            continue
        change = None
        if name in old.stored and name in new.stored:
            change = relative_change(old.stored[name], new.stored[name])
        if change is None:
            uncompared.append(name)
            continue
        unchanged += change == 0.0
        layer = layer_of(name)
        changes[layer] = max(change, changes.get(layer, 0.0))
    return TensorDifferences(
        only_old=tuple(name for name in old.tensors if name not in new.tensors),
        only_new=tuple(name for name in new.tensors if name not in old.tensors),
        reshaped=tuple(reshaped),
        change_by_layer=changes,
        unchanged=unchanged,
        uncompared=tuple(uncompared),
    )


def layer_of(name: str) -> str:
    """The layer that a tensor belongs to: up to its first number, else all but its last part.

    >>> layer_of("transformer.h.3.attn.c_attn.weight"), layer_of("transformer.wte.weight")
    ('transformer.h.3', 'transformer.wte')
    """
    found = _LAYER.match(name)
    return found[1] if found else name.rpartition(".")[0] or name
