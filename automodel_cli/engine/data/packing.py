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
        self._groups = groups
        self._ends = np.cumsum([group.num_packs for group in groups], dtype=np.int64)
        self._begins = _take_turns(groups, np.cumsum(counts) - counts)
        self.num_packs = int(self._ends[-1]) if len(groups) else 0
        self.num_padded = self.num_packs * size - int(lengths.sum())

    def documents(self, pack: int) -> Int64Array:
        """The numbers of the documents in a pack, longest first."""
        number = int(np.searchsorted(self._ends, pack, side="right"))
        group = self._groups[number]
        place = pack - (int(self._ends[number]) - group.num_packs)
        chosen = [
            self._by_length[begin + place * each : begin + (place + 1) * each]
            for (_, each), begin in zip(group.pieces, self._begins[number], strict=True)
        ]
        return np.concatenate(chosen)


def _take_turns(groups: Sequence[PackGroup], first_of_length: Int64Array) -> list[list[int]]:
    """Where in the documents by length each piece of each group begins to take."""
    following = first_of_length.tolist()
    begins = []
    for group in groups:
        of_group = []
        for length, each in group.pieces:
            of_group.append(following[length])
            following[length] += each * group.num_packs
        begins.append(of_group)
    return begins
