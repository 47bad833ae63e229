"""What a user's own class must offer to take part: one Protocol per role.

Nothing needs to inherit from these; a class with the right methods is enough. The optional
abilities are separate Protocols, so that a plain dataset stays plain.

Shapes: B batch, T sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

from automodel_cli.errors import AmcliError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    Int64Array: TypeAlias = npt.NDArray[np.int64]
    Batch: TypeAlias = dict[str, npt.NDArray[Any]]
    Metrics: TypeAlias = Mapping[str, "Metric | torch.Tensor"]


# The label that marks a token as not trained on. Fixed: the step counts its label tokens by it, and a
# loss that masked another one would be divided by a wrong count in silence.
IGNORED_LABEL = -100
# Keys of a batch that change what a model computes, beside `input_ids`.
OPTIONAL_INPUTS = ("position_ids", "document_ids")


@contextmanager
def in_users_code(note: Callable[[], str]) -> Iterator[None]:
    """Lets an exception of the user's own code pass with its type and traceback, and one note added.

    Args:
        note: Which code it was; asked only when something was raised.

    Raises:
        RuntimeError: The code called `sys.exit`, which would end a run with the exit code of a success, or raised
            StopIteration, which the generators around it would take for an end of their own.
    """
    try:
        yield
    except AmcliError:
        raise
    except (SystemExit, StopIteration) as error:
        did = (
            f"ended the program with sys.exit({error.code!r})"
            if isinstance(error, SystemExit)
            else "raised StopIteration"
        )
        ended = RuntimeError(f"the code {did}")
        ended.add_note(note())
        # With the frames of the user's code, so that the place in the message is theirs.
        raise ended.with_traceback(error.__traceback__) from None
    except Exception as error:
        error.add_note(note())
        raise


class Metric(NamedTuple):
    """A number that a model or a loss reports for one micro-batch; it appears on the step line and in `metrics.jsonl`.

    A model gives `metrics`, a mapping of names to these, as an attribute of its output beside `logits`; a loss returns
    a pair of the loss and such a mapping. A plain tensor in the mapping is a mean.

    Args:
        value: One number, on any device; it is detached.
        reduction: Over the micro-batches of all ranks; `mean` weights each by its label tokens, as the loss does.
        unit: Shown behind the number.
    """

    value: torch.Tensor
    reduction: Literal["mean", "sum", "max"] = "mean"
    unit: str = ""


class Order(Protocol):
    """Maps positions in the endless stream of a run to sample ids; keeps no state."""

    num_samples: int

    def order(self, k: Int64Array) -> Int64Array:
        """Sample ids for the global positions `k`, same shape."""
        ...


@runtime_checkable
class MapDataset(Protocol):
    """The least that a dataset must offer: a length and samples by number."""

    def __len__(self) -> int:
        """Samples in one epoch."""
        ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        """Sample `index`: at least `input_ids` (T,) and `labels` (T,), integers; label -100 is not trained on.

        `labels[t]` is the token that follows `input_ids[t]`: labels are shifted already.
        """
        ...


@runtime_checkable
class GatherDataset(MapDataset, Protocol):
    """A dataset that makes a whole batch at once, faster than sample by sample."""

    def gather(self, sample_ids: Int64Array, /) -> Batch:
        """The samples `sample_ids` (B,) as arrays of shape (B, T), equal to stacking `__getitem__`."""
        ...


@runtime_checkable
class LocatesSamples(Protocol):
    """A dataset that can say where a sample lies, for error messages."""

    def locate(self, sample_id: int, /) -> tuple[str, int]:
        """File that holds the sample, and the token offset in it of the sample's first input."""
        ...


@runtime_checkable
class BoundsTokens(Protocol):
    """A dataset that may know its largest token id without reading all of it."""

    max_token_id: int | None


@runtime_checkable
class OrdersSamples(Protocol):
    """A dataset that chooses the order in which a run reads it."""

    def sample_order(self, seed: int, /) -> Order:
        """The order of a run with this seed."""
        ...


@runtime_checkable
class StatefulStream(Protocol):
    """An iterable dataset that can go on from a saved place instead of being read again."""

    def state_dict(self) -> dict[str, Any]:
        """The place between two samples: numbers, text, lists and mappings of them."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """The next pass begins there."""
        ...


class DocumentSource(Protocol):
    """Text for `amcli prep`: an iterable that gives the same documents in the same order at every pass.

    One that is a `StatefulStream`, too, goes on at its saved place, a state that JSON can hold; any other is read again
    up to the place where a preparation was stopped.
    """

    def __iter__(self) -> Iterator[str | bytes | Mapping[str, Any] | None]:
        """Documents: a text, its UTF-8, or a mapping with a text in the field `--text-column`."""
        ...


class LossFunction(Protocol):
    """Maps logits and labels to a scalar that can be differentiated."""

    def __call__(
        self, logits: torch.Tensor, labels: torch.Tensor, /, *, num_label_tokens: int
    ) -> torch.Tensor | tuple[torch.Tensor, Metrics]:
        """The SUM of the losses of all tokens whose label is not -100, over `num_label_tokens`; see `Metric` for pairs.

        Args:
            logits: (B, T, V).
            labels: (B, T), int64.
            num_label_tokens: Label tokens of the whole optimisation step, over all micro-batches.
        """
        ...


@runtime_checkable
class HeadLoss(Protocol):
    """A loss that works on what the head of the model would be given, so that logits need never exist."""

    def of_hidden(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        /,
        *,
        num_label_tokens: int,
    ) -> torch.Tensor | tuple[torch.Tensor, Metrics]:
        """As `LossFunction`, with the logits `hidden @ weight.T + bias`.

        Args:
            hidden: (B, T, C).
            weight: (V, C).
            bias: (V,), or None.
            labels: (B, T), int64.
            num_label_tokens: Label tokens of the whole optimisation step, over all micro-batches.
        """
        ...


@runtime_checkable
class TakesSplitHead(Protocol):
    """A `HeadLoss` whose `weight` may be a DTensor that is split by its rows over tensor-parallel ranks."""

    takes_split_head: bool


@runtime_checkable
class DescribesItself(Protocol):
    """A `HeadLoss` that says how it is computed, in place of the name of its class."""

    def in_words(self, vocab_size: int, num_parts: int, device: torch.device, /) -> str:
        """Words that are shown at the start of a run.

        Args:
            vocab_size: Rows of the head's weight.
            num_parts: Tensor-parallel ranks that share them.
            device: Device of the model.
        """
        ...
