"""What a text in a configuration stands for: an environment variable, a length such as `10M tokens`, a time.

`${VAR}` and `${VAR,default}` are looked up at the moment of use. What is printed, saved or sent keeps the unresolved
text, so that a secret or a path of one machine does not travel with a checkpoint. All of it is torch-free: a value
that cannot be converted is refused before anything starts.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from typing import Any

from automodel_cli.engine.config.config import Config
from automodel_cli.engine.config.origin import Origin
from automodel_cli.engine.config.yaml_reader import parse_value
from automodel_cli.errors import ConfigError

_FORM = re.compile(r"(?P<number>\d+(?:[._]\d+)*(?:e\d+)?)\s*(?P<unit>[kmbtKMBT]?)\s*(?P<noun>tokens|steps)")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_TIME = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_TIME_SECONDS = (86_400, 3_600, 60, 1)
FORMS = "a number of steps, or text such as 10M tokens"
_REFERENCE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?:,(?P<default>[^}]*))?\}")


class DurationError(ValueError):
    """A length that is not one, with the rule."""


def in_steps(value: int | str, tokens_per_step: int | None) -> int:
    """A length in steps; of one in tokens, the steps until that many are seen.

    Args:
        value: Steps, or text: `300 steps`, `10M tokens`, `2.5B tokens`.
        tokens_per_step: Label tokens of an optimisation step over all ranks; None if unknown.

    Raises:
        DurationError: The text is no length, or the tokens of a step are not known.

    >>> in_steps(7, None), in_steps("10M tokens", 65536), in_steps("1_000 steps", None)
    (7, 153, 1000)
    """
    if isinstance(value, int):
        return value
    found = _FORM.fullmatch(value.strip())
    if found is None:
        raise DurationError(f"it must be {FORMS}")
    count = float(found["number"].replace("_", "")) * _UNITS[found["unit"].lower()]
    if not math.isfinite(count) or count != int(count) or count < 0:
        raise DurationError(f"it must be a whole number of {found['noun']}")
    if found["noun"] == "steps":
        return int(count)
    if tokens_per_step is None:
        raise DurationError("the tokens of a step are not known, since the section `dataset` has no seq_len")
    return -(-int(count) // tokens_per_step)


def in_tokens(value: int | str) -> int:
    """A length in tokens: their number, or text.

    Raises:
        DurationError: The text is none of tokens, or the number is not positive.

    >>> in_tokens(500), in_tokens("2M tokens")
    (500, 2000000)
    """
    if isinstance(value, str) and not value.strip().endswith("tokens"):
        raise DurationError("it must be a number of tokens, or text such as 10M tokens")
    tokens = in_steps(value, 1)
    if tokens < 1:
        raise DurationError("it must be at least 1 token")
    return tokens


def in_seconds(text: str) -> int:
    """A time of at least a second, in seconds: days, hours, minutes, seconds, each with its letter.

    Raises:
        DurationError: The text is none.

    >>> in_seconds("3h30m"), in_seconds("90s"), in_seconds("1d12h")
    (12600, 90, 129600)
    """
    found = _TIME.fullmatch(text.strip())
    seconds = (
        sum(int(part or 0) * size for part, size in zip(found.groups(), _TIME_SECONDS, strict=True)) if found else 0
    )
    if seconds < 1:
        raise DurationError("it must be a time such as 3h30m, 45m, 90s or 1d12h")
    return seconds


def tokens_per_step(config: Config) -> int | None:
    """Label tokens of an optimisation step: global_batch_size times the length of a sample, where both stand there."""
    samples = config.get("step_scheduler.global_batch_size")
    length = config.get("packed_sequence.packed_sequence_size") or _sample_length(config.get("dataset"))
    return samples * length if type(samples) is int and type(length) is int and samples * length > 0 else None


def _sample_length(section: Any) -> int | None:
    """The first whole `seq_len` of a dataset, or of those inside it, such as the parts of a blend."""
    if isinstance(section, Mapping):
        if type(section.get("seq_len")) is int:
            return int(section["seq_len"])
        inner: list[Any] = list(section.values())
    else:
        inner = section if isinstance(section, list) else []
    return next((length for part in inner if (length := _sample_length(part)) is not None), None)


def variables_in(text: str) -> list[str]:
    """Names of the environment variables that a text refers to.

    >>> variables_in("${HOME}/data-${SPLIT,train}")
    ['HOME', 'SPLIT']
    """
    return [match["name"] for match in _REFERENCE.finditer(text)]


def resolve_env(value: Any, origin: Origin) -> Any:
    """The value with environment variables put in.

    A text that is one reference and nothing else takes the type that YAML gives the
    variable's text (`${STEPS,100}` is an integer); a reference inside longer text stays text.

    Raises:
        ConfigError: A variable is not set and has no default.
    """
    if not isinstance(value, str) or "${" not in value:
        return value

    def lookup(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        found = os.environ.get(name, default)
        if found is None:
            message = f"the environment variable {name} is not set, and `{match[0]}` gives no default"
            raise ConfigError(message, where=str(origin), help=f"export {name}=..., or write ${{{name},default}}")
        return str(found)

    whole = _REFERENCE.fullmatch(value)
    if whole:
        return parse_value(lookup(whole), source=f"${{{whole['name']}}}")
    return _REFERENCE.sub(lookup, value)
