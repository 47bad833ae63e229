"""Makes one batch from sample ids, for any map-style dataset, and checks the ids in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from automodel_cli.engine.protocols import IGNORED_LABEL, BoundsTokens, GatherDataset, LocatesSamples, MapDataset
from automodel_cli.errors import DataError

Batch = dict[str, npt.NDArray[np.int64]]


_REQUIRED_KEYS = ("input_ids", "labels")
_VOCAB_HELP = "set model.vocab_size to that of the tokenizer that made the data"


class BatchReader:
    """Reads batches and refuses token ids that the model does not have.

    Without the check such an id is a crash inside the embedding, on a GPU one that names
    neither the id nor the file.

    Args:
        dataset: A map-style dataset, with `gather` or without.
        vocab_size: Number of ids of the model; `None` checks nothing.

    Raises:
        DataError: The dataset is not map-style, is empty, or is known to hold ids that the model lacks.
    """

    def __init__(self, dataset: MapDataset, vocab_size: int | None) -> None:
        kind = type(dataset).__name__
        if not isinstance(dataset, MapDataset):
            raise DataError(
                f"the dataset {kind} does not offer both __len__ and __getitem__",
                help="see MapDataset in automodel_cli/engine/protocols.py; a dataset without numbers must be iterable",
            )
        if len(dataset) < 1:
            raise DataError(f"the dataset {kind} has no samples; at least 1 is needed")
        if vocab_size is not None and isinstance(dataset, BoundsTokens):
            _check_bound(dataset, vocab_size)
        self._dataset = dataset
        # Asked once: to look for the members of a protocol takes as long as reading a small batch.
        self._gather = dataset.gather if isinstance(dataset, GatherDataset) else None
        self._vocab_size = vocab_size

    def read(self, sample_ids: npt.NDArray[np.int64]) -> Batch:
        """The samples `sample_ids` (B,) as int64 arrays (B, T).

        Raises:
            DataError: A sample lacks a key, has another length than its neighbours, or holds an
                id outside the vocabulary.
        """
        if self._gather is not None:
            batch = self._gather(sample_ids)
        else:
            batch = _stack([self._dataset[int(sample_id)] for sample_id in sample_ids], type(self._dataset).__name__)
        if self._vocab_size is not None:
            self._check_ids(batch, sample_ids, self._vocab_size)
        return batch

    def _check_ids(self, batch: Batch, sample_ids: npt.NDArray[np.int64], vocab_size: int) -> None:
        for name, shift in (("input_ids", 0), ("labels", 1)):
            ids = batch[name]
            # Two reductions without temporaries; what follows runs only where they find something.
            if int(ids.max()) < vocab_size and int(ids.min()) >= 0:
                continue
            outside = (ids >= vocab_size) | (ids < 0)
            if name == "labels":
                outside &= ids != IGNORED_LABEL
            if outside.any():
                row, column = (int(place) for place in np.argwhere(outside)[0])
                raise self._outside(int(ids[row, column]), int(sample_ids[row]), column + shift, vocab_size)

    def _outside(self, token_id: int, sample_id: int, place: int, vocab_size: int) -> DataError:
        where = f"sample {sample_id}, token {place}"
        if isinstance(self._dataset, LocatesSamples):
            path, offset = self._dataset.locate(sample_id)
            where = f"{path}, token {offset + place:,}"
        return DataError(
            f"token id {token_id:,} is outside the model's vocabulary, 0 to {vocab_size - 1:,}",
            where=where,
            help=_VOCAB_HELP,
        )


def _check_bound(dataset: BoundsTokens, vocab_size: int) -> None:
    largest = dataset.max_token_id
    if largest is not None and largest >= vocab_size:
        raise DataError(
            f"the data hold token id {largest:,}, but the model's vocabulary is 0 to {vocab_size - 1:,}",
            help=_VOCAB_HELP,
        )


def _stack(samples: list[Any], kind: str) -> Batch:
    missing = [name for name in _REQUIRED_KEYS if name not in samples[0]]
    if missing:
        raise DataError(
            f"a sample of {kind} has the keys {sorted(samples[0])}, but {' and '.join(missing)} is missing",
            help="see MapDataset in automodel_cli/engine/protocols.py",
        )
    try:
        return {
            name: np.stack([np.asarray(sample[name]) for sample in samples]).astype(np.int64) for name in samples[0]
        }
    except (ValueError, KeyError) as error:
        raise DataError(
            f"samples of {kind} cannot be stacked into one batch: {error}",
            help="every sample must have the same keys and lengths",
        ) from error
