"""Numbers about the tensors of safetensors files, with numpy and without torch.

Tensors are read a piece at a time, so the memory needed is that of a piece. They are read, not
mapped: a file that shrinks under a map kills its reader.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from automodel_cli.engine.checkpoint.tensor_header import TensorInfo

_PIECE = 1 << 22  # elements; 32 MiB in float64
_BINS = 16
_PLAIN = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BOOL": "?", "U8": "u1", "I8": "i1"},
    **{"I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4", "I64": "<i8", "U64": "<u8"},
}
# A layer whose weights are so many times larger than those of its siblings is on its way out.
_OUTLIER = 10.0


@dataclass(frozen=True)
class TensorStats:
    """Numbers of one tensor; those of finite elements only, None where there is none.

    Args:
        name: Of the tensor.
        dtype: As safetensors names it.
        shape: Its dimensions.
        minimum: Smallest element.
        maximum: Largest element.
        mean: Mean of the elements.
        rms: Root of the mean square.
        num_nan: Elements that are no number.
        num_inf: Infinite elements.
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


def tensor_stats(name: str, info: TensorInfo, file: Path) -> TensorStats | None:
    """Reads one tensor; None for a type that numpy has no values for (8 bits and less of floats).

    Args:
        name: Of the tensor.
        info: From `read_tensor_header(file)`.
        file: The safetensors file.
    """
    if info.begin is None or (info.dtype not in _PLAIN and info.dtype != "BF16"):
        return None
    total = squares = 0.0
    low, high = math.inf, -math.inf
    num_nan = num_inf = num_finite = 0
    for piece in _pieces(info, file):
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
        zero_rows=_zero_rows(info, file),
        histogram=_histogram(info, file, low, high) if known else (),
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


def relative_change(old: tuple[TensorInfo, Path], new: tuple[TensorInfo, Path]) -> float | None:
    """Norm of the difference over the norm of the old tensor; None if the types have no values, or the shapes differ.

    Infinite for a change from zero.
    """
    (old_info, old_file), (new_info, new_file) = old, new
    readable = all(info.begin is not None and (info.dtype in _PLAIN or info.dtype == "BF16") for info, _ in (old, new))
    if old_info.shape != new_info.shape or not readable:
        return None
    change = base = 0.0
    for before, after in zip(_pieces(old_info, old_file), _pieces(new_info, new_file), strict=True):
        change += float(np.square(after - before).sum())
        base += float(np.square(before).sum())
    if change == 0.0:
        return 0.0
    return math.sqrt(change / base) if base else math.inf


def _pieces(info: TensorInfo, file: Path, step: int = _PIECE) -> Iterator[npt.NDArray[np.float64]]:
    """The elements in order, as float64, `step` at a time."""
    dtype = np.dtype(_PLAIN.get(info.dtype, "<u2"))
    with file.open("rb") as stream:
        stream.seek(info.begin or 0)
        for begin in range(0, info.num_elements, step):
            wanted = min(step, info.num_elements - begin)
            stored = np.frombuffer(stream.read(wanted * dtype.itemsize), dtype)
            if stored.size != wanted:
                raise OSError(f"{file} ends before its tensors do")
            yield _values(stored, info.dtype)


def _values(stored: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float64]:
    if dtype == "BF16":
        # The upper half of a float32.
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float64)


def _zero_rows(info: TensorInfo, file: Path) -> int:
    if len(info.shape) != 2 or not info.num_elements:
        return 0
    columns = info.shape[1]
    pieces = _pieces(info, file, step=max(1, _PIECE // columns) * columns)
    return sum(int((~piece.reshape(-1, columns).any(axis=1)).sum()) for piece in pieces)


def _histogram(info: TensorInfo, file: Path, low: float, high: float) -> tuple[int, ...]:
    counts = np.zeros(_BINS, dtype=np.int64)
    # All elements equal: numpy would widen the range by itself, and so does this, by as much.
    span = (low, high) if high > low else (low - 0.5, high + 0.5)
    for piece in _pieces(info, file):
        counts += np.histogram(piece[np.isfinite(piece)], bins=_BINS, range=span)[0]
    return tuple(counts.tolist())
