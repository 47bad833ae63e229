"""Shape rules of a model where the numbers stand in the configuration itself, also under Hugging Face names.

Looks at `model` and at a `config` in it. What only building the model would show is left to that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from automodel_cli.engine.config.check_layout import Refuse
from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.env import resolve_env
from automodel_cli.engine.config.origin import KeyPath, dotted
from automodel_cli.engine.config.validation_sets import validation_sets
from automodel_cli.errors import ConfigError

_WIDTHS = ("n_embd", "hidden_size")
_HEADS = ("n_head", "num_attention_heads")
_POSITIONS = ("n_positions", "max_position_embeddings")
_MOST = 1_000_000  # a model of more heads or channels is a slip of the keyboard, and the search for divisors ends here


def check_model(config: Config, refuse: Refuse) -> None:
    """Refuses widths that the heads do not divide, and samples longer than the model's positions."""
    for section in ("model", "model.config"):
        width, heads = _first(config, section, _WIDTHS), _first(config, section, _HEADS)
        # With a size of its own, a head takes no equal share of the width.
        if width and heads and config.get(f"{section}.head_dim") is None:
            _check_divides(width, heads, refuse)
        groups = _first(config, section, ("num_key_value_heads",))
        if heads and groups:
            _check_divides(heads, groups, refuse)
    positions = next(_all(config, _POSITIONS), None)
    packs = "packed_sequence.packed_sequence_size"
    # Packs take the place of the datasets' own samples.
    for name in (packs,) if _number(config, packs) else _sample_lengths(config):
        length = _number(config, name)
        if positions and length and length > positions[1]:
            key, most = positions
            refuse(
                name,
                f"{name} is {length}, but the model has {most} positions ({key})",
                f"a {name.rpartition('.')[2]} up to {most} would work",
            )


def _sample_lengths(config: Config) -> list[str]:
    """The keys that may say how long the samples of a dataset are."""
    sections = ["dataset", *map(dotted, validation_sets(config).values())]
    return [f"{section}.{name}" for section in sections for name in ("seq_len", "seq_length")]


def _check_divides(whole: tuple[str, int], part: tuple[str, int], refuse: Refuse) -> None:
    (key, number), (by, divisor) = whole, part
    if number % divisor == 0 or number > _MOST:
        return
    below = next((n for n in range(min(divisor, number), 0, -1) if number % n == 0), 1)
    above = next((n for n in range(min(divisor, number), number + 1) if number % n == 0), number)
    works = " or ".join(str(n) for n in dict.fromkeys((below, above)))
    name = by.rpartition(".")[2]
    refuse(by, f"{key} is {number}, but it must be a multiple of {by} = {divisor}", f"{name} {works} would work")


def _first(config: Config, section: str, names: tuple[str, ...]) -> tuple[str, int] | None:
    return next(_of(config, (f"{section}.{name}" for name in names)), None)


def _all(config: Config, names: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    return _of(config, (f"{section}.{name}" for section in ("model", "model.config") for name in names))


def _of(config: Config, keys: Iterator[str]) -> Iterator[tuple[str, int]]:
    """The keys that hold a whole number above zero, with it."""
    for key in keys:
        number = _number(config, key)
        if number is not None and number > 0:
            yield key, number


def _number(config: Config, key: str) -> int | None:
    """A whole number, also by way of an environment variable; None for anything else, which others refuse."""
    path: KeyPath = tuple(key.split("."))
    try:
        value: Any = resolve_env(config.get(key), config.origin(path))
    except ConfigError:
        return None
    return value if type(value) is int else None
