"""Samples packed with whole documents, on top of a dataset of token shards (`packed_sequence` of a configuration).

Every document of the shards is in exactly one pack. Documents longer than a pack are cut, and the label at
the cut is the token that follows there; the label of the last token of a document is masked, as the next
token in the pack is not its continuation. A document that a shard's end cuts counts as two.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from automodel_cli.engine.data.order import BlendOrder, BlendSchedule, SampleOrder
from automodel_cli.engine.data.packing import PackPlan
from automodel_cli.engine.data.samples import OpenShards, number_documents, refuse_outside
from automodel_cli.engine.data.window_dataset import WindowDataset, fingerprint
from automodel_cli.engine.protocols import IGNORED_LABEL, MapDataset, Order
from automodel_cli.engine.shards.tokens import Int64Array, ShardInfo
from automodel_cli.errors import ConfigError, DataError


@dataclass(frozen=True)
class Pieces:
    """Documents, cut where they are longer than a pack; arrays of one entry for each piece.

    Attributes:
        shards: Number of the shard.
        offsets: Token offset in it.
        lengths: Tokens that go into a pack.
        continues: Whether the token behind the piece belongs to the same document.
    """

    shards: npt.NDArray[np.int32]
    offsets: Int64Array
    lengths: npt.NDArray[np.int32]
    continues: npt.NDArray[np.bool_]


def cut_documents(begins: Int64Array, num_tokens: int, size: int, shard: int = 0) -> Pieces:
    """The pieces of one shard, in order; those that have no label are left out.

    Args:
        begins: Token offsets at which documents begin, ascending. What precedes the first is a document too.
        num_tokens: Tokens of the shard.
        size: Tokens of a pack.
        shard: Its number.
    """
    starts = np.unique(np.concatenate((np.zeros(1, dtype=np.int64), begins)))
    lengths = np.diff(starts, append=num_tokens)
    num_pieces = -(-lengths // size)
    of = np.repeat(np.arange(len(starts)), num_pieces)
    place = np.arange(len(of)) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    ends_document = place == num_pieces[of] - 1
    piece_lengths = np.where(ends_document, lengths[of] - place * size, size)
    has_label = (piece_lengths > 1) | ~ends_document
    return Pieces(
        np.full(int(has_label.sum()), shard, dtype=np.int32),
        (starts[of] + place * size)[has_label],
        piece_lengths[has_label].astype(np.int32),
        ~ends_document[has_label],
    )


class PackedDataset:
    """A dataset of packs of `size` tokens.

    Args:
        dataset: Holds the documents; its `seq_len` has no effect here, its weights have.
        size: Tokens of a pack.

    Attributes:
        seq_len: The size of a pack.
        fingerprint: Identifies the packs.
        num_padded: Tokens of room that stay empty in all packs.

    Raises:
        ConfigError: `size` is below 2: a sample of one token has no label.
        DataError: Nothing says where the documents begin, or none has a label.
    """

    def __init__(self, dataset: WindowDataset, size: int) -> None:
        if size < 2:
            raise ConfigError(
                f"packed_sequence_size is {size}, but a pack needs at least 2 tokens, or 0 to pack nothing"
            )
        self.seq_len = size
        self.manifest = dataset.manifest
        self.max_token_id = dataset.max_token_id
        self.num_tokens = dataset.num_tokens
        self._dataset = dataset
        self._open = OpenShards(dataset.shards)
        self._pieces = _join([_pieces_of(dataset, number, size) for number in range(len(dataset.shards))])
        self._plans = [PackPlan(self._pieces.lengths[chosen], size) for chosen in self._piece_ranges()]
        self._piece_begins = [chosen.start for chosen in self._piece_ranges()]
        self._plan_ends = np.cumsum([plan.num_packs for plan in self._plans], dtype=np.int64)
        self.num_padded = sum(plan.num_padded for plan in self._plans)
        self.fingerprint = hashlib.sha256(f"packs of {size}|{dataset.fingerprint}".encode()).hexdigest()
        if not all(plan.num_packs for plan in self._plans):
            raise DataError(
                "no document has more than one token, so there is nothing to learn from",
                where=str(dataset.shards[0].path),
            )

    def __len__(self) -> int:
        return int(self._plan_ends[-1])

    def __getitem__(self, index: int) -> dict[str, Int64Array]:
        """Pack `index`, as `gather` has it, without the first dimension."""
        batch = self.gather(np.array([operator.index(index)], dtype=np.int64))
        return {name: rows[0] for name, rows in batch.items()}

    def gather(self, sample_ids: Int64Array) -> dict[str, Int64Array]:
        """The packs `sample_ids` (B,) as int64 arrays (B, size).

        Returns:
            `input_ids`; `labels`, -100 at the end of a document and in empty room; `position_ids`, from 0 in each
            document; `document_ids`, from 0 in each pack, where empty room has a number of its own.

        Raises:
            IndexError: An id is not in 0 to len - 1.
        """
        sample_ids = np.asarray(sample_ids, dtype=np.int64)
        refuse_outside(sample_ids, len(self))
        pieces, rows = self._pieces_in(sample_ids)
        lengths, continues = self._pieces.lengths[pieces].astype(np.int64), self._pieces.continues[pieces]
        ends = np.cumsum(lengths)
        # Where each piece begins in the flattened rows: behind those before it in its row.
        begins = ends - lengths
        begins += rows * self.seq_len - begins[np.searchsorted(rows, rows)]
        input_ids, following = self._copy(pieces, begins, len(sample_ids) * self.seq_len)
        ends = begins + lengths
        labels = np.full(len(input_ids), IGNORED_LABEL, dtype=np.int64)
        labels[:-1] = input_ids[1:]
        labels[ends - 1] = np.where(continues, following, IGNORED_LABEL)
        is_room = np.append(begins[1:] != ends[:-1], ends[-1:] != len(input_ids))
        room_begins = ends[is_room]
        for begin, end in zip(room_begins.tolist(), _row_ends(room_begins, self.seq_len).tolist(), strict=True):
            labels[begin:end] = IGNORED_LABEL
        shape = (len(sample_ids), self.seq_len)
        positions, documents = number_documents(np.sort(np.concatenate((begins, room_begins))), shape)
        return {
            "input_ids": input_ids.reshape(shape),
            "position_ids": positions,
            "document_ids": documents,
            "labels": labels.reshape(shape),
        }

    def sample_order(self, seed: int) -> Order:
        """The order in which a run with this seed reads the packs; by weights if the dataset is a blend."""
        weights = [part.weight for part in self._dataset.parts if part.weight is not None]
        shuffle = self._dataset.shuffle
        if not weights:
            return SampleOrder(len(self), seed, self.fingerprint, shuffle)
        orders = [
            SampleOrder(plan.num_packs, seed, fingerprint(f"packs of {self.seq_len}", part.shards), shuffle)
            for plan, part in zip(self._plans, self._dataset.parts, strict=True)
        ]
        return BlendOrder(orders, BlendSchedule(weights))

    def _copy(self, pieces: Int64Array, begins: Int64Array, num_tokens: int) -> tuple[Int64Array, Int64Array]:
        """The tokens of pieces, each from its place on, 0 elsewhere; and the token behind each that continues."""
        table = self._pieces
        lengths, continues = table.lengths[pieces].astype(np.int64), table.continues[pieces]
        counts = lengths + continues
        found = self._open.read(table.shards[pieces], table.offsets[pieces], counts)
        following = np.zeros(len(pieces), dtype=np.int64)
        if continues.any():
            behind = (np.cumsum(counts) - 1)[continues]
            following[continues] = found[behind]
            found = np.delete(found, behind)
        into = np.zeros(num_tokens, dtype=np.int64)
        # Pieces that stand one behind the other in the packs do so in what was read, too.
        firsts = np.flatnonzero(np.append(True, begins[1:] != (begins + lengths)[:-1]))
        sizes = np.add.reduceat(lengths, firsts)
        ends = np.cumsum(sizes)
        for begin, size, end in zip(begins[firsts].tolist(), sizes.tolist(), ends.tolist(), strict=True):
            into[begin : begin + size] = found[end - size : end]
        return into, following

    def _pieces_in(self, packs: Int64Array) -> tuple[Int64Array, Int64Array]:
        """The pieces of some packs, one pack after the other, and the place of its pack for each."""
        parts = np.searchsorted(self._plan_ends, packs, side="right")
        pieces, rows = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        for part in np.unique(parts).tolist():
            plan, places = self._plans[part], np.flatnonzero(parts == part)
            first = int(self._plan_ends[part]) - plan.num_packs
            documents, counts = plan.documents(packs[places] - first)
            pieces.append(documents + self._piece_begins[part])
            rows.append(np.repeat(places, counts))
        by_row = np.argsort(np.concatenate(rows), kind="stable")
        return np.concatenate(pieces)[by_row], np.concatenate(rows)[by_row]

    def _piece_ranges(self) -> Iterator[slice]:
        """The pieces of each part of the dataset."""
        first = 0
        for part in self._dataset.parts:
            last = first + len(part.shards)
            begin, end = np.searchsorted(self._pieces.shards, [first, last])
            yield slice(int(begin), int(end))
            first = last


def _row_ends(places: Int64Array, row_tokens: int) -> Int64Array:
    return (places // row_tokens + 1) * row_tokens


def pack_documents(dataset: MapDataset, size: int) -> PackedDataset:
    """The packs of a dataset of token shards.

    Raises:
        ConfigError: It is another kind of dataset, or `size` is below 2.
        DataError: As `PackedDataset`.
    """
    if not isinstance(dataset, WindowDataset):
        raise ConfigError(
            f"packed_sequence packs the documents of token shards, but the dataset is a {type(dataset).__name__}",
            help="use NanogptDataset or MegatronPretraining, or set packed_sequence.packed_sequence_size to 0",
        )
    return PackedDataset(dataset, size)


def _pieces_of(dataset: WindowDataset, number: int, size: int) -> Pieces:
    info: ShardInfo = dataset.shards[number]
    begins = dataset.document_begins(number)
    if begins is None:
        raise DataError(
            "packing needs to know where documents begin, but no manifest beside the shards names a BOS token",
            where=str(info.path),
            help="set bos_token, for example bos_token: 50256 for the GPT-2 vocabulary",
        )
    return cut_documents(begins, info.num_tokens, size, number)


def _join(pieces: list[Pieces]) -> Pieces:
    return Pieces(
        np.concatenate([each.shards for each in pieces]),
        np.concatenate([each.offsets for each in pieces]),
        np.concatenate([each.lengths for each in pieces]),
        np.concatenate([each.continues for each in pieces]),
    )
