"""Which samples a run is trained on, in which order: what may not change under it. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from automodel_cli.engine.data.stream_loader import is_stream
from automodel_cli.engine.protocols import MapDataset
from automodel_cli.errors import CheckpointError


def order_key_of(dataset: MapDataset | Iterable[Any], seed: int, saved: str = "") -> str:
    """The identity of the sample order; a resumed run must have the identity it was saved with.

    Args:
        dataset: That of training.
        seed: Of the run.
        saved: The identity in the checkpoint; empty where any will do.

    Raises:
        CheckpointError: It has another.
    """
    # A user's dataset need not have a fingerprint; its kind, and its length if it has one, then stand for it.
    fingerprint = getattr(dataset, "fingerprint", f"{type(dataset).__qualname__} of {amount_of(dataset)}")
    order_key = f"seed {seed}, data {fingerprint}"
    if saved and saved != order_key:
        raise CheckpointError(
            "the run was saved with another seed or other data, so its samples cannot be continued\n"
            f"  saved: {saved}\n  now:   {order_key}",
            help="resume with the seed, the shards and the seq_len of that run, or start a new one",
        )
    return order_key


def amount_of(dataset: MapDataset | Iterable[Any]) -> str:
    """How many samples there are, as far as that can be told."""
    return str(len(dataset)) if isinstance(dataset, MapDataset) and not is_stream(dataset) else "a stream"


def amount_in_words(dataset: MapDataset | Iterable[Any]) -> str:
    """The same for people.

    >>> amount_in_words([1] * 1234), amount_in_words(iter([]))
    ('1,234 samples', 'a stream of samples')
    """
    amount = amount_of(dataset)
    return f"{int(amount):,} samples" if amount.isdigit() else f"{amount} of samples"
