"""Parts of tensors: which part of a whole is held, written or read. Arithmetic alone, without torch.

A region is a box: where it begins in the whole tensor, and its size in each dimension.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

QKV_PARTS = 3


@dataclass(frozen=True)
class Region:
    """A box inside a tensor; both tuples have one entry for each dimension.

    Args:
        offsets: First index in each dimension.
        sizes: Number of elements along each dimension.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Region:
        """All of a tensor."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def num_elements(self) -> int:
        """Product of the sizes; 1 for a scalar."""
        return math.prod(self.sizes)

    def chunk(self, axis: int, index: int, count: int) -> Region:
        """One of `count` parts along a dimension, cut as `torch.chunk` does: the last ones may be empty.

        >>> [Region((0,), (5,)).chunk(0, index, 4).sizes for index in range(4)]
        [(2,), (2,), (1,), (0,)]
        """
        length = self.sizes[axis]
        size = -(-length // count)
        begin, end = min(length, index * size), min(length, (index + 1) * size)
        return self.rows(axis, begin, end)

    def rows(self, axis: int, begin: int, end: int) -> Region:
        """From `begin` to `end` along a dimension, both counted from the region's own beginning."""
        offsets, sizes = list(self.offsets), list(self.sizes)
        offsets[axis], sizes[axis] = offsets[axis] + begin, end - begin
        return Region(tuple(offsets), tuple(sizes))

    def common(self, other: Region) -> Region | None:
        """The intersection of two regions of one tensor; None if it is empty."""
        begins = [max(pair) for pair in zip(self.offsets, other.offsets, strict=True)]
        ends = [
            min(mine + size, theirs + other_size)
            for mine, size, theirs, other_size in zip(self.offsets, self.sizes, other.offsets, other.sizes, strict=True)
        ]
        sizes = tuple(end - begin for begin, end in zip(begins, ends, strict=True))
        return Region(tuple(begins), sizes) if all(size > 0 for size in sizes) else None

    def within(self, outer: Region) -> tuple[slice, ...]:
        """Indices of this region in a tensor that holds only `outer`."""
        return tuple(
            slice(begin - base, begin - base + size)
            for begin, base, size in zip(self.offsets, outer.offsets, self.sizes, strict=True)
        )

    def transposed(self) -> Region:
        """The same elements in the transpose of a matrix."""
        return Region(self.offsets[::-1], self.sizes[::-1])


@dataclass(frozen=True)
class Part:
    """A part of a tensor, with its content.

    Args:
        name: Name of the whole tensor.
        region: Its place in the whole tensor.
        tensor: Its content, of the region's sizes.
    """

    name: str
    region: Region
    tensor: torch.Tensor


class TensorSource(Protocol):
    """Where parts of tensors are read from, such as the files of a checkpoint."""

    def shape(self, name: str) -> Sequence[int]:
        """The region that is a whole tensor."""

    def region(self, name: str, region: Region) -> torch.Tensor:
        """A part of a tensor, on the CPU."""


class LazyTensorSource(TensorSource, Protocol):
    """Tensors by name that are read in part, such as those of a checkpoint's files."""

    def __iter__(self) -> Iterator[str]:
        """The names."""

    def __getitem__(self, name: str) -> torch.Tensor:
        """A whole tensor."""

    def without_content(self, name: str) -> torch.Tensor:
        """One of its shape and type on the meta device."""


def rows_in_model_order(region: Region, num_rows: int, num_ranks: int) -> list[Region]:
    """The places in the model of rows of a fused projection that are in the order of the ranks.

    Ranks hold [q0; k0; v0], [q1; k1; v1], ...; the model has [q; k; v]. One region of the first order is up to three
    regions of the second, in the same sequence.

    >>> [part.offsets for part in rows_in_model_order(Region((3,), (3,)), num_rows=6, num_ranks=2)]
    [(1,), (3,), (5,)]
    """
    height = num_rows // (QKV_PARTS * num_ranks)
    first, end = region.offsets[0], region.offsets[0] + region.sizes[0]
    found = []
    while first < end:
        rank, part = divmod(first // height, QKV_PARTS)
        last = min(end, (first // height + 1) * height)
        row = (part * num_ranks + rank) * height + first % height
        found.append(Region((row, *region.offsets[1:]), (last - first, *region.sizes[1:])))
        first = last
    return found


def tiles(shape: Sequence[int], regions: Iterable[Region]) -> bool:
    """Whether regions cover a tensor, each element exactly once.

    Regions cover a box exactly if and only if their corners do, counted with alternating signs: a corner inside
    is shared by as many regions of either sign. So the cost grows with the number of regions, not with its square.

    >>> tiles((4,), [Region((0,), (3,)), Region((3,), (1,))]), tiles((4,), [Region((0,), (3,)), Region((2,), (2,))])
    (True, False)
    """
    boxes = [region for region in regions if region.num_elements]
    whole = Region.whole(shape)
    if any(box.common(whole) != box for box in boxes):
        return False
    # Checkpoints of amcli cut few dimensions; a file that cuts more was not written by it.
    cut = [axis for axis, bound in enumerate(shape) if any(box.sizes[axis] != bound for box in boxes)]
    if len(cut) > 4:
        return False
    if math.prod(shape) == 0:
        return True
    corners: Counter[tuple[int, ...]] = Counter()
    for box, sign in [*((box, 1) for box in boxes), (whole, -1)]:
        for ends in itertools.product((0, 1), repeat=len(cut)):
            corner = tuple(box.offsets[axis] + end * box.sizes[axis] for axis, end in zip(cut, ends, strict=True))
            corners[corner] += -sign if sum(ends) % 2 else sign
    return not any(corners.values())
