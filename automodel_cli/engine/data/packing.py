"""Best-fit packing: samples of a fixed length made of whole documents.

A document is cut only if it is longer than a pack. The plan is made at the start from the index of
documents, by the number of documents of each length: its cost and memory do not grow with the text,
only with the number of documents (25 bytes each) and the length of a pack. It is a function of the data
alone, so a run resumes with the same packs.

Method: best-fit decreasing on a histogram of lengths, after Krell et al. 2021, "Efficient Sequence Packing
without Cross-contamination".
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PackGroup:
    """Packs that hold documents of the same lengths.

    Attributes:
        num_packs: How many.
        pieces: (length, how many of it in each pack), in the order of filling.
    """

    num_packs: int
    pieces: tuple[tuple[int, int], ...]


def plan_groups(counts: Sequence[int], size: int) -> list[PackGroup]:
    """Best-fit decreasing, for all documents of one length at once.

    Equal to placing one document after the other, longest first, each into the fullest pack that has room.

    Args:
        counts: Documents of each length 0 to `size`, shape (size + 1,).
        size: Room in a pack, in tokens.

    >>> plan_groups([0, 2, 1, 0, 1], size=4)
    [PackGroup(num_packs=1, pieces=((4, 1),)), PackGroup(num_packs=1, pieces=((2, 1), (1, 2)))]
    """
    finished: list[PackGroup] = []
    # Packs that have room left, by how much of it, and the sorted keys of that table.
    open_groups: dict[int, list[PackGroup]] = {}
    rooms: list[int] = []

    def put_back(room: int, group: PackGroup) -> None:
        if not group.num_packs:
            return
        if not room:
            finished.append(group)
        elif room in open_groups:
            open_groups[room].append(group)
        else:
            open_groups[room] = [group]
            insort(rooms, room)

    for length in range(size, 0, -1):
        left = int(counts[length])
        while left:
            place = bisect_left(rooms, length)
            if place < len(rooms):
                room = rooms[place]
                group = open_groups[room].pop()
                if not open_groups[room]:
                    del open_groups[room], rooms[place]
            else:
                room, group = size, PackGroup(-(-left // (size // length)), ())
            # A pack that has taken one is the fullest with room for the next, so it is filled up.
            each = room // length
            full = min(group.num_packs, left // each)
            rest = left - full * each if full < group.num_packs else 0
            put_back(room - each * length, PackGroup(full, (*group.pieces, (length, each))))
            if rest:
                put_back(room - rest * length, PackGroup(1, (*group.pieces, (length, rest))))
            put_back(room, PackGroup(group.num_packs - full - bool(rest), group.pieces))
            left -= full * each + rest
    return finished + [group for room in rooms for group in open_groups[room]]


class PackPlan:
    """Which documents make up which pack.

    Args:
        lengths: Tokens of each document, shape (D,), each in 1 to `size`.
        size: Room in a pack, in tokens.

    Attributes:
        num_packs: Packs in all.
        num_padded: Tokens of room that stay empty, in all packs together.
    """

    def __init__(self, lengths: npt.NDArray[np.signedinteger[Any]], size: int) -> None:
        counts = np.bincount(lengths, minlength=size + 1)
        groups = plan_groups(counts.tolist(), size)
        # Documents by length, those of one length in the order of the text; the groups take them in turn.
        self._by_length = np.argsort(lengths, kind="stable")
        self._packs_of_group = np.array([group.num_packs for group in groups], dtype=np.int64)
        self._ends = np.cumsum(self._packs_of_group, dtype=np.int64)
        # Places in a pack, group by group: pack q of the group has document `begin + q * stride` of `_by_length` there.
        self._place_begins, self._place_strides = _places(groups, np.cumsum(counts) - counts)
        self._places_of_group = np.array([sum(each for _, each in group.pieces) for group in groups], dtype=np.int64)
        self._first_places = np.cumsum(self._places_of_group) - self._places_of_group
        self.num_packs = int(self._ends[-1]) if len(groups) else 0
        self.num_padded = self.num_packs * size - int(lengths.sum())

    def documents(self, packs: Int64Array) -> tuple[Int64Array, Int64Array]:
        """The numbers of the documents in some packs, longest first.

        Args:
            packs: Numbers of packs, shape (B,).

        Returns:
            The documents of all of them one after the other, and how many each pack has, shape (B,).
        """
        groups = np.searchsorted(self._ends, packs, side="right")
        counts = self._places_of_group[groups]
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        places = np.repeat(self._first_places[groups], counts) + within
        turns = packs - (self._ends[groups] - self._packs_of_group[groups])
        chosen = self._place_begins[places] + np.repeat(turns, counts) * self._place_strides[places]
        return self._by_length[chosen], counts


def _places(groups: Sequence[PackGroup], first_of_length: Int64Array) -> tuple[Int64Array, Int64Array]:
    """For each place in the packs of each group: the document in the first pack, and the stride to that in the next."""
    following = first_of_length.tolist()
    begins: list[int] = []
    strides: list[int] = []
    for group in groups:
        for length, each in group.pieces:
            begins.extend(range(following[length], following[length] + each))
            strides.extend([each] * each)
            following[length] += each * group.num_packs
    return np.array(begins, dtype=np.int64), np.array(strides, dtype=np.int64)
