"""Makes one batch from samples of any dataset, and holds them to what `MapDataset` asks for.

What costs nothing beside the reading is looked at in every batch: keys, types, shapes, lengths, and ids by their
least and largest. Whether the labels are those of next-token prediction is judged once, from the first batch that
can tell.

Shapes: B batch, T sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from automodel_cli.engine.protocols import IGNORED_LABEL, OPTIONAL_INPUTS
from automodel_cli.errors import DataError

Int64Array = npt.NDArray[np.int64]
Batch = dict[str, Int64Array]

_REQUIRED_KEYS = ("input_ids", "labels")
VOCAB_HELP = "set model.vocab_size to that of the tokenizer that made the data"

# Labels of another kind agree with the inputs by chance in less than one of this number of batches.
_CERTAINTY = 1000


@dataclass(frozen=True)
class DataSection:
    """What the configuration and the model say of a dataset.

    Args:
        key: Its section, such as `dataset` or `validation_dataset.web`.
        where: File and line of that section; None if it is not known.
        shift_labels: Whether its labels stand at the place of their own token, and are to be shifted here.
        positions: Longest sample that the model takes; None checks nothing.
    """

    key: str = "dataset"
    where: str | None = None
    shift_labels: bool = False
    positions: int | None = None

    def __str__(self) -> str:
        return f"`{self.key}`" + (f" from {self.where}" if self.where else "")


class Collator:
    """Stacks samples into batches, checks them, and shifts their labels if they are to be shifted.

    Args:
        kind: Class of the dataset, for messages.
        vocab_size: Ids of the model; `None` checks no upper bound.
        section: What the configuration says of the dataset.
        locate: File and token offset of a sample, where the dataset knows them.
    """

    def __init__(
        self,
        kind: str,
        vocab_size: int | None,
        section: DataSection,
        locate: Callable[[int], tuple[str, int]] | None = None,
    ) -> None:
        self._kind = kind
        self._vocab_size = vocab_size
        self._section = section
        self._locate = locate
        self._is_judged = False

    def stacked(self, samples: Sequence[Any], sample_ids: Sequence[int] | Int64Array) -> Batch:
        """The samples (T,) as one checked batch (B, T), int64.

        Args:
            samples: Mappings of the keys of a sample; other keys are left out.
            sample_ids: Their numbers, for messages.

        Raises:
            DataError: A sample is no mapping, lacks a key, or has another length than its neighbours, or as `checked`.
        """
        if not isinstance(samples[0], Mapping):
            raise self._no_mapping(samples[0], int(sample_ids[0]))
        names = self._names(samples[0], f"a sample of {self._kind} has")
        try:
            batch = {name: np.stack([np.asarray(sample[name]) for sample in samples]) for name in names}
        except Exception as error:
            raise self._why_not_stacked(samples, sample_ids, names, error) from error
        return self.checked(batch, sample_ids)

    def checked(self, batch: Mapping[str, Any], sample_ids: Sequence[int] | Int64Array) -> Batch:
        """A batch (B, T) as int64, its labels shifted if they are to be.

        Raises:
            DataError: A key is missing, a type is not whole numbers, a shape is wrong, an id is outside the
                vocabulary, or the labels are not those of next-token prediction.
        """
        names = self._names(batch, f"a batch of {self._kind} has")
        batch = {name: self._whole_numbers(name, np.asarray(batch[name])) for name in names}
        self._check_shapes(batch, sample_ids)
        self._check_ids(batch, sample_ids)
        shifts = self._section.shift_labels
        if not self._is_judged:
            found = place_of_labels(batch["input_ids"], batch["labels"])
            if found is not None and found.is_shifted == shifts:
                raise self._wrong_labels(found.num_labels)
            self._is_judged = found is not None
        return {**batch, "labels": shifted_labels(batch)} if shifts else batch

    def _names(self, keyed: Mapping[str, Any], what: str) -> list[str]:
        missing = [name for name in _REQUIRED_KEYS if name not in keyed]
        if missing:
            help_ = "a sample is {'input_ids': (T,), 'labels': (T,)}, where labels[t] is the token after input_ids[t]"
            if missing == ["labels"]:
                help_ += ";\n        or, with shift_labels: true, where labels are a copy of input_ids"
            keys = sorted(map(str, keyed))
            raise self._error(f"{what} the keys {keys}, but {' and '.join(missing)} is missing", help_)
        return [name for name in (*_REQUIRED_KEYS, *OPTIONAL_INPUTS) if name in keyed]

    def _whole_numbers(self, name: str, values: npt.NDArray[Any]) -> Int64Array:
        if values.dtype == np.int64:
            return values
        if values.dtype.kind not in "iu":
            kind = "no numbers" if values.dtype.kind in "OUS" else str(values.dtype)
            raise self._error(
                f"{name} of {self._kind} are {kind}, but must be whole numbers",
                "token ids are integers of any size, in a list, an array or a tensor",
            )
        return values.astype(np.int64)

    def _check_shapes(self, batch: Batch, sample_ids: Sequence[int] | Int64Array) -> None:
        shape = batch["input_ids"].shape
        for name, values in batch.items():
            if values.ndim != 2:
                own = values.shape[1:]
                help_ = f"leave out the first dimension: {name}[0]" if own[:1] == (1,) else None
                raise self._error(f"{name} of sample {int(sample_ids[0])} have the shape {own}, not (T,)", help_)
            if values.shape != shape:
                raise self._error(
                    f"input_ids are {shape}, {name} {values.shape}, but every input needs its label",
                    f"a label that is not trained on is {IGNORED_LABEL}",
                )
        if not shape[1]:
            raise self._error(f"sample {int(sample_ids[0])} is empty: its input_ids have no token")
        longest = int(batch["position_ids"].max()) + 1 if "position_ids" in batch else shape[1]
        if self._section.positions is not None and longest > self._section.positions:
            raise self._error(
                f"samples have {longest} tokens, but the model has {self._section.positions} positions",
                f"give samples of up to {self._section.positions} tokens, or the model more positions",
            )

    def _check_ids(self, batch: Batch, sample_ids: Sequence[int] | Int64Array) -> None:
        end = np.iinfo(np.int64).max if self._vocab_size is None else self._vocab_size
        for name in _REQUIRED_KEYS:
            ids = batch[name]
            # One reduction without a temporary: as unsigned numbers, negative ids are the largest.
            unsigned = ids.view(np.uint64)
            if int(unsigned.max()) < end:
                continue
            outside = unsigned >= end
            if name == "labels":
                outside &= ids != IGNORED_LABEL
            if outside.any():
                row, column = (int(place) for place in np.argwhere(outside)[0])
                raise self._outside(name, int(ids[row, column]), int(sample_ids[row]), column)

    def _outside(self, name: str, token_id: int, sample_id: int, column: int) -> DataError:
        help_ = VOCAB_HELP
        if token_id < 0:
            help_ = f"a label that is not trained on is {IGNORED_LABEL}; ids are never negative"
        bounds = "0 and more" if self._vocab_size is None else f"0 to {self._vocab_size - 1:,}"
        if self._locate is not None:
            path, offset = self._locate(sample_id)
            place = offset + column + (name == "labels" and not self._section.shift_labels)
            message = f"token id {token_id:,} is outside the model's vocabulary, {bounds}"
            return DataError(message, where=f"{path}, token {place:,}", help=help_)
        ends = f", the vocabulary ends at {self._vocab_size - 1}" if self._vocab_size is not None else ""
        return self._error(f"sample {sample_id} holds id {token_id}{ends} ({name}[{column}]; ids are {bounds})", help_)

    def _wrong_labels(self, num_labels: int) -> DataError:
        if self._section.shift_labels:
            return self._error(
                f"shift_labels is true, but all {num_labels:,} labels of a batch are the token after their input "
                "already: shifted again, they would be the second one after it",
                "leave shift_labels out",
            )
        return self._error(
            f"all {num_labels:,} labels of a batch equal the inputs at their own places, so the model would learn to "
            "copy its input instead of predicting the next token",
            "set shift_labels: true, which shifts the labels of every sample by one, or shift them in the data set: "
            "labels[t] is the token after input_ids[t]",
        )

    def _no_mapping(self, sample: Any, sample_id: int) -> DataError:
        kind = f"a {type(sample).__name__}"
        if isinstance(sample, tuple | list):
            kind += f" of {len(sample)}"
        return self._error(
            f"sample {sample_id} of {self._kind} is {kind}, not a mapping",
            "return {'input_ids': x, 'labels': y}, both of shape (T,)",
        )

    def _why_not_stacked(
        self, samples: Sequence[Any], sample_ids: Sequence[int] | Int64Array, names: Sequence[str], error: Exception
    ) -> DataError:
        """The first sample that differs from the first of all, or that is no array."""
        shapes: dict[str, tuple[int, ...]] = {}
        for sample, number in zip(samples, map(int, sample_ids), strict=True):
            if not isinstance(sample, Mapping):
                return self._no_mapping(sample, number)
            for name in names:
                if name not in sample:
                    return self._error(f"sample {number} of {self._kind} has no {name}, but sample {sample_ids[0]} has")
                try:
                    shape = np.asarray(sample[name]).shape
                except Exception as problem:
                    message = f"{name} of sample {number} of {self._kind} cannot become an array: {problem}"
                    return self._error(message, "give lists, arrays, or tensors on the CPU")
                first = shapes.setdefault(name, shape)
                if shape != first:
                    sizes = [f"{of[0]} tokens" if len(of) == 1 else f"the shape {of}" for of in (first, shape)]
                    return self._error(
                        f"samples of {self._kind} cannot be stacked into one batch: {name} of sample {sample_ids[0]} "
                        f"have {sizes[0]}, those of sample {number} {sizes[1]}",
                        "cut them to one length, or pad them with any id whose label is -100",
                    )
        return self._error(f"samples of {self._kind} cannot be stacked into one batch: {error}")

    def _error(self, message: str, help_: str | None = None) -> DataError:
        where = self._section.where
        return DataError(message if where else f"{self._section.key}: {message}", where=where, help=help_)


class LabelPlace(NamedTuple):
    """What the labels of a batch are: shifted (True), copies (False), or neither (None); and how many there are."""

    is_shifted: bool | None
    num_labels: int


def place_of_labels(input_ids: Int64Array, labels: Int64Array) -> LabelPlace | None:
    """Where the labels of a batch (B, T) stand, or None if it cannot tell.

    Both forms agree in a run of equal tokens. So the answer needs all labels to agree with one form, and enough
    of them to disagree with the other that this is no accident.

    >>> ids = np.arange(20)[None]
    >>> place_of_labels(ids, ids), place_of_labels(ids, ids + 1)
    (LabelPlace(is_shifted=False, num_labels=20), LabelPlace(is_shifted=True, num_labels=20))
    >>> place_of_labels(ids * 0, ids * 0)
    """
    learnt = labels != IGNORED_LABEL
    is_copy = (labels == input_ids) | ~learnt
    is_next = (labels[:, :-1] == input_ids[:, 1:]) | ~learnt[:, :-1]
    copies, shifted = bool(is_copy.all()), bool(is_next.all())
    num_labels = int(learnt.sum())
    if not copies and not shifted:
        return LabelPlace(None, num_labels)
    # A label of k values agrees by chance once in k times, n of them once in k ** n.
    num_against = int((~(is_next if copies else is_copy[:, :-1])).sum())
    num_values = max(2, len(np.unique(labels[learnt])))
    is_certain = num_against * math.log(num_values) > math.log(_CERTAINTY)
    return LabelPlace(shifted, num_labels) if is_certain else None


def shifted_labels(batch: Mapping[str, Int64Array]) -> Int64Array:
    """Labels that stand at their own token, moved to the input before it; the last of each document has none.

    >>> shifted_labels({"labels": np.array([[5, 6, 7]])}).tolist()
    [[6, 7, -100]]
    """
    labels = np.full_like(batch["labels"], IGNORED_LABEL)
    labels[:, :-1] = batch["labels"][:, 1:]
    if "document_ids" in batch:
        documents = batch["document_ids"]
        labels[:, :-1][documents[:, 1:] != documents[:, :-1]] = IGNORED_LABEL
    elif "position_ids" in batch:
        labels[:, :-1][batch["position_ids"][:, 1:] == 0] = IGNORED_LABEL
    return labels
