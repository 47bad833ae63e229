"""Statistics of stored tensors, and how far tensors of two checkpoints differ; with numpy and without torch.

Tensors are read some rows at a time, so the memory needed is that of some rows, whether they stand in one file or in
many. They are read, not mapped: a file that shrinks under a map kills its reader.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from automodel_cli.engine.checkpoint.foreign import ForeignTensors
from automodel_cli.engine.checkpoint.stored_tensors import Piece, StoredTensor, TensorInfo
from automodel_cli.engine.distributed.region import Region

_PIECE = 1 << 22  # elements; 32 MiB in float64
_BINS = 16
_PLAIN = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BOOL": "?", "U8": "u1", "I8": "i1"},
    **{"I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4", "I64": "<i8", "U64": "<u8"},
}
# A layer whose weights are this many times larger than those of its siblings is diverging.
_OUTLIER = 10.0
_LAYER = re.compile(r"^(.*?\.\d+)\.")


@dataclass(frozen=True)
class TensorStats:
    """Numbers of one tensor; those of finite elements only, None where there is none.

    Args:
        dtype: As safetensors names it.
        rms: Root of the mean square.
        num_nan: Elements that are no number.
        zero_rows: Rows of a matrix (first dimension) in which every element is zero.
        histogram: Counts of 16 equal parts from minimum to maximum.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    minimum: float | None
    maximum: float | None
    mean: float | None
    rms: float | None
    num_nan: int
    num_inf: int
    zero_rows: int
    histogram: tuple[int, ...]


def tensor_stats(name: str, tensor: StoredTensor) -> TensorStats | None:
    """Reads one tensor; None for a type that numpy lacks (floats of 8 bits and less)."""
    info = tensor.info
    if not _is_readable(info):
        return None
    total = squares = 0.0
    low, high = math.inf, -math.inf
    num_nan = num_inf = num_finite = 0
    for piece in _slabs(tensor):
        finite = piece[np.isfinite(piece)]
        num_nan += int(np.isnan(piece).sum())
        num_inf += int(np.isinf(piece).sum())
        num_finite += finite.size
        if finite.size:
            total += float(finite.sum())
            squares += float(np.square(finite).sum())
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    known = num_finite > 0
    return TensorStats(
        name=name,
        dtype=info.dtype,
        shape=info.shape,
        minimum=low if known else None,
        maximum=high if known else None,
        mean=total / num_finite if known else None,
        rms=math.sqrt(squares / num_finite) if known else None,
        num_nan=num_nan,
        num_inf=num_inf,
        zero_rows=_zero_rows(tensor),
        histogram=_histogram(tensor, low, high) if known else (),
    )


def warnings(all_stats: Sequence[TensorStats]) -> list[str]:
    """What looks wrong: elements that are no numbers, dead rows, layers far larger than their siblings."""
    found = []
    for stats in all_stats:
        if stats.num_nan or stats.num_inf:
            found.append(f"{stats.name}: {stats.num_nan:,} NaN and {stats.num_inf:,} infinite elements")
        if len(stats.shape) == 2 and stats.zero_rows > 0:
            found.append(f"{stats.name}: {stats.zero_rows:,} of {stats.shape[0]:,} rows are zero")
    siblings: dict[str, list[TensorStats]] = defaultdict(list)
    for stats in all_stats:
        siblings[re.sub(r"\d+", "#", stats.name)].append(stats)
    for group in siblings.values():
        usual = statistics.median([stats.rms or 0.0 for stats in group])
        for stats in group:
            if len(group) >= 3 and usual and stats.rms is not None and stats.rms > _OUTLIER * usual:
                times = stats.rms / usual
                found.append(f"{stats.name}: RMS {stats.rms:.3g}, {times:.0f} times the median of its kind")
    return found


def relative_change(old: StoredTensor, new: StoredTensor) -> float | None:
    """Norm of the difference over the norm of the old tensor; None if the types have no values, or the shapes differ.

    Infinite for a change from zero.
    """
    if old.shape != new.shape or not (_is_readable(old.info) and _is_readable(new.info)):
        return None
    change = base = 0.0
    for before, after in zip(_slabs(old), _slabs(new), strict=True):
        change += float(np.square(after - before).sum())
        base += float(np.square(before).sum())
    if change == 0.0:
        return 0.0
    return math.sqrt(change / base) if base else math.inf


def _is_readable(info: TensorInfo) -> bool:
    return info.dtype in _PLAIN or info.dtype == "BF16"


def _slabs(tensor: StoredTensor) -> Iterator[npt.NDArray[np.float64]]:
    """The elements in order, as float64: whole rows, as many at a time as fit into a piece of memory."""
    shape = tensor.shape or (1,)
    columns = math.prod(shape[1:])
    if not columns:
        return
    height = max(1, _PIECE // columns)
    for first in range(0, shape[0], height):
        slab = Region.whole(tensor.shape)
        if tensor.shape:
            slab = slab.rows(0, first, min(first + height, shape[0]))
        content = np.empty(slab.sizes, dtype=np.float64)
        for piece, common in tensor.pieces_of(slab):
            content[common.within(slab)] = _rows(tensor.info, piece, common)
        yield content


def _rows(info: TensorInfo, piece: Piece, region: Region) -> npt.NDArray[np.float64]:
    """Some whole rows of a piece."""
    dtype = np.dtype(_PLAIN.get(info.dtype, "<u2"))
    row_bytes = math.prod(region.sizes[1:]) * dtype.itemsize
    first = region.offsets[0] - piece.region.offsets[0] if region.offsets else 0
    with piece.file.open("rb") as stream:
        stream.seek(piece.begin + first * row_bytes)
        stored = np.frombuffer(stream.read(region.num_elements * dtype.itemsize), dtype)
    if stored.size != region.num_elements:
        raise OSError(f"{piece.file} ends before its tensors do")
    return _values(stored, info.dtype).reshape(region.sizes)


def _values(stored: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float64]:
    if dtype == "BF16":
        # The upper half of a float32.
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float64)


def _zero_rows(tensor: StoredTensor) -> int:
    if len(tensor.shape) != 2 or not tensor.info.num_elements:
        return 0
    return sum(int((~slab.any(axis=1)).sum()) for slab in _slabs(tensor))


def _histogram(tensor: StoredTensor, low: float, high: float) -> tuple[int, ...]:
    counts = np.zeros(_BINS, dtype=np.int64)
    # All elements equal: numpy would widen the range by itself, and so does this, by as much.
    span = (low, high) if high > low else (low - 0.5, high + 0.5)
    for slab in _slabs(tensor):
        counts += np.histogram(slab[np.isfinite(slab)], bins=_BINS, range=span)[0]
    return tuple(counts.tolist())


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
