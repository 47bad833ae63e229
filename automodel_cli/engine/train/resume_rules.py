"""What a resumed run may change freely, and what only by naming it: `--override-resume KEY`.

Free: ranks and layout, micro-batch, workers, paths to the same data, intervals, logging, `max_steps` and the schedule;
every change is reported. Not free: the order of the samples, and every setting that would make it another run.
Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from automodel_cli.engine.config.emit import Change
from automodel_cli.engine.config.suggest import hint
from automodel_cli.engine.data.stream_loader import is_stream
from automodel_cli.engine.protocols import MapDataset
from automodel_cli.errors import CheckpointError, UsageError

# Keys, or whole sections, and what depends on them.
_FIXED = {
    "model": "the weights are of that architecture",
    "seed": "it decides the order of the samples",
    "dataset._target_": "the data cursor counts its samples",
    "dataset.seq_len": "the data cursor counts samples of that length",
    "shift_labels": "it decides which token is predicted",
    "step_scheduler.global_batch_size": "the schedule counts steps of that size",
    "optimizer._target_": "its state means nothing to another optimizer, which would start without any",
}
OPTION = "--override-resume"


def check_changes(changes: Sequence[Change], consented: Sequence[str]) -> None:
    """Refuses changes that need consent and have none.

    Args:
        changes: Keys that differ from the configuration in the checkpoint.
        consented: Keys, or sections, that the user named.

    Raises:
        CheckpointError: All changes that need consent, with both values.
        UsageError: A named key has not changed, or needs no consent.
    """
    fixed = [change for change in changes if _reason(change.key)]
    for name in consented:
        if not any(_is_in(change.key, name) for change in fixed):
            keys = [change.key for change in fixed]
            help_ = hint(name, keys, noun="changed keys that need it") if keys else "nothing that changed needs it"
            raise UsageError(f"{OPTION} {name} is given, but that key has not changed or may change freely", help=help_)
    refused = [change for change in fixed if not any(_is_in(change.key, name) for name in consented)]
    if refused:
        lines = "".join(f"\n  {change}  ({_reason(change.key)})" for change in refused)
        options = " ".join(f"{OPTION} {change.key}" for change in refused)
        if any(change.key.startswith("model.") for change in refused):
            options += " (weights of other shapes still cannot be loaded)"
        raise CheckpointError(
            f"the run was trained with other settings:{lines}",
            help=f"keep them, start a new run, or take the new values knowingly: {options}",
        )


def allows_other_samples(consented: Sequence[str]) -> bool:
    """Whether the user has agreed that the run goes on with other samples, or in another order."""
    return any(_is_in(key, name) for name in consented for key in ("seed", "dataset._target_", "dataset.seq_len"))


def drops_optimizer_state(changes: Sequence[Change]) -> bool:
    """Whether the optimizer is another one than that whose state was saved."""
    return any(change.key == "optimizer._target_" for change in changes)


def _reason(key: str) -> str | None:
    return next((reason for name, reason in _FIXED.items() if _is_in(key, name)), None)


def _is_in(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}.")


def order_key_of(dataset: MapDataset | Iterable[Any], seed: int, saved: str = "") -> str:
    """The identity of the sample order; a resumed run must have the identity it was saved with.

    Args:
        dataset: The training set.
        seed: Decides the order of its samples.
        saved: The identity in the checkpoint; empty if any is allowed.

    Raises:
        CheckpointError: It has another.
    """
    # A user's dataset may have no fingerprint; then its class, and its length if it has one, identify it.
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
    """The number of samples, if it is known."""
    return str(len(dataset)) if isinstance(dataset, MapDataset) and not is_stream(dataset) else "a stream"


def amount_in_words(dataset: MapDataset | Iterable[Any]) -> str:
    """The number of samples, for users.

    >>> amount_in_words([1] * 1234), amount_in_words(iter([]))
    ('1,234 samples', 'a stream of samples')
    """
    amount = amount_of(dataset)
    return f"{int(amount):,} samples" if amount.isdigit() else f"{amount} of samples"
