"""Which files a `file_pattern` means, and what to say where there are none. Standard library only.

Used by the check of a configuration and by the dataset itself, so that both find the same files
and say the same where nothing matches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from typing import Any

from automodel_cli.engine.config.suggest import command
from automodel_cli.errors import ConfigError, DataError

MEGATRON_HELP = "`paths` names indexed datasets, NAME.bin beside NAME.idx; `amcli prep --format megatron` writes them"
BLEND_HELP = 'write a blend as ["30", "a/*.bin", "70", "b/*.bin"], or as a list of {pattern: a/*.bin, weight: 30}'

# The keys of `paths` of a Megatron dataset that gives each split its own files.
MEGATRON_SPLITS = frozenset({"train", "validation", "test"})

_LISTED_FILES = 6


@dataclass(frozen=True)
class PatternPart:
    """One part of a `file_pattern`.

    Attributes:
        key: Where the pattern stands below `file_pattern`, such as `(1,)` or `(0, "pattern")`.
        pattern: As it is written; it may be no text, which the caller reports.
        weight: Its share among the weights of all parts; `None` where no part has one.
    """

    key: tuple[str | int, ...]
    pattern: Any
    weight: Fraction | None = None


def pattern_parts(file_pattern: Any) -> list[PatternPart]:
    """The patterns of a `file_pattern`, with their weights if it is a blend.

    A blend is a list in which weights and patterns take turns, or a list of mappings.

    Raises:
        ConfigError: A weight is missing, or is no number above 0.

    >>> [(part.pattern, part.weight) for part in pattern_parts(["30", "a/*.bin", 70, "b/*.bin"])]
    [('a/*.bin', Fraction(30, 1)), ('b/*.bin', Fraction(70, 1))]
    """
    if isinstance(file_pattern, str | Path) or not isinstance(file_pattern, Sequence):
        return [PatternPart((), file_pattern)]
    if any(isinstance(item, Mapping) for item in file_pattern):
        return [_of_mapping(index, item) for index, item in enumerate(file_pattern)]
    numbers = [_number(item) for item in file_pattern[::2]]
    if not any(number is not None for number in numbers):
        return [PatternPart((index,), item) for index, item in enumerate(file_pattern)]
    if len(file_pattern) % 2 or None in numbers:
        raise ConfigError("weights and patterns must take turns, beginning with a weight", help=BLEND_HELP)
    return [
        PatternPart((2 * index + 1,), pattern, _above_zero(number))
        for index, (number, pattern) in enumerate(zip(numbers, file_pattern[1::2], strict=True))
    ]


def _of_mapping(index: int, item: Any) -> PatternPart:
    if not isinstance(item, Mapping) or set(item) != {"pattern", "weight"}:
        raise ConfigError(f"part {index} of the blend must have the keys pattern and weight", help=BLEND_HELP)
    return PatternPart((index, "pattern"), item["pattern"], _above_zero(_number(item["weight"])))


def _number(value: Any) -> Fraction | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = Decimal(str(value).strip())
    except InvalidOperation:
        return None
    return Fraction(number) if number.is_finite() else None


def _above_zero(weight: Fraction | None) -> Fraction:
    if weight is None or weight <= 0:
        found = "no number" if weight is None else f"{float(weight):g}"
        raise ConfigError(f"a weight is {found}, but it must be a number above 0", help=BLEND_HELP)
    return weight


def matching_files(pattern: Path, help_: str | None = None) -> list[Path]:
    """The files that a path or glob pattern means, sorted by name.

    Args:
        pattern: `~` is the home directory.
        help_: What would work, for the error; without it, how token shards are made.

    Raises:
        DataError: None does.
    """
    pattern = pattern.expanduser()
    # A plain path comes first: its name may hold characters that a pattern gives a meaning.
    if pattern.is_file():
        return [pattern]
    root = Path(pattern.anchor)
    found = sorted(path for path in root.glob(str(pattern.relative_to(root))) if path.is_file())
    if not found:
        raise DataError(no_match(pattern), where=str(pattern), help=help_ or _how_to_prepare(pattern))
    return found


def _how_to_prepare(pattern: Path) -> str:
    """How to make the shards that a pattern looks for, or to do without the validation split of its directory."""
    directory = pattern.parent
    if pattern.name.startswith("val") and any(directory.glob("train_*.bin")):
        return (
            f"{directory} has no validation split: train without one (--set validation_dataset=null "
            "--set step_scheduler.val_every_steps=null), or prepare more documents"
        )
    if directory.name == "shakespeare":
        return "`amcli prep shakespeare` makes data/shakespeare/train_*.bin and val_*.bin"
    place = [] if "*" in str(directory) else ["--output-dir", directory]
    return f"`{command('prep', 'SOURCE', *place)}` makes train_*.bin and val_*.bin"


def megatron_files(prefix: Path) -> list[Path]:
    """The `.bin` files that a prefix or glob pattern of Megatron datasets means, sorted by name.

    A prefix is the path without `.bin` or `.idx`; either ending may be written too.

    Raises:
        DataError: There is none, or an `.idx` is missing.
    """
    prefix = prefix.expanduser()
    # Path.with_suffix would take `.5` of `corpus_v1.5` for an ending.
    stem = prefix.with_suffix("") if prefix.suffix in (".bin", ".idx") else prefix
    found = matching_files(stem.with_name(f"{stem.name}.bin"), MEGATRON_HELP)
    for file in found:
        if not file.with_suffix(".idx").is_file():
            raise DataError("there is no .idx beside this .bin", where=str(file), help=MEGATRON_HELP)
    return found


def no_match(pattern: Path) -> str:
    """The message that nothing matches, with the content of the nearest directory that exists."""
    directory = next(parent for parent in pattern.absolute().parents if parent.is_dir())
    try:
        names = sorted(entry.name for entry in directory.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        return f"no file matches, and {directory} cannot be read: {error.strerror}"
    shown = ", ".join(names[:_LISTED_FILES]) or "nothing"
    more = f" and {len(names) - _LISTED_FILES} more" if len(names) > _LISTED_FILES else ""
    return f"no file matches; the nearest directory that exists is {directory}, which holds {shown}{more}"


def vocabulary_error(name: str, largest: int, vocab_size: int, where: str) -> DataError:
    """The data holds a token id that the model does not have.

    Args:
        name: The dataset's section.
        largest: The largest token id in the data.
        vocab_size: The model's number of token ids.
        where: The place to look at.
    """
    return DataError(
        f"{name} holds the token id {largest}, but the model's vocabulary is {vocab_size} (ids 0 to {vocab_size - 1})",
        where=where,
        help=f"set model.vocab_size to {largest + 1} or more, or prepare the data with the model's tokenizer",
    )
