"""What a user asks of preparation, and how numbers of tokens are written."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from pathlib import Path

from automodel_cli.engine.prep.documents import SourceOptions
from automodel_cli.errors import UsageError

DEFAULT_SHARD_TOKENS = 100_000_000
# Measured with `python benchmarks/prep.py --chunk-sizes`: fewer documents cost calls, more cost waiting for the last.
DEFAULT_CHUNK_SIZE = 256
# As in `engine.shards.tokens`, which imports numpy, and the command line must not.
MAX_SHARD_TOKENS = 2**31 - 1

_COUNT = re.compile(r"(?P<number>\d+(_\d+)*(\.\d+)?(e\+?\d+)?)(?P<unit>[kmbt]?)", re.IGNORECASE | re.ASCII)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def available_cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


class OverLength(StrEnum):
    """What happens to a document that is longer than `--max-length`."""

    CUT = "cut"
    SPLIT = "split"


@dataclass(frozen=True)
class Partition:
    """One part of a source.

    Attributes:
        index: From 0.
        count: Parts in all.
    """

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def share(self, total: int) -> int:
        """This part's share of a whole number; the shares of all parts add up to it.

        >>> [Partition(index, 3).share(8) for index in range(3)]
        [3, 3, 2]
        """
        return total // self.count + (self.index < total % self.count)


@dataclass(frozen=True)
class PrepOptions:
    """Settings of one preparation.

    Attributes:
        source: What is read; a plain string is a preset's name, a file, or a glob pattern of files.
        max_tokens: Exact size of the training split; `None` takes the preset's default, or all.
        val_tokens: Size of the validation split, reached with whole documents; 0 makes none;
            `None` holds out the source's usual share.
        tokenizer: As for `load_tokenizer`; `None` takes the preset's default.
        output_dir: `None` is `data/<preset>` or `data/<name of the file>`.
        shard_tokens: Every shard but the last of a split holds exactly this many tokens.
        format: A name in `engine.shards.formats`.
        max_length: Tokens of the longest document, BOS and EOS included; `None` for no limit.
        over_length: What happens to longer ones.
        bos: Begin each document with BOS.
        bos_token: The entry of the vocabulary to use as BOS; `None` takes the tokenizer's own.
        eos: End each document with EOS.
        seed: Of the shuffling.
        shuffle_buffer: Shuffle within blocks of so many documents; 0 does not.
        partition: Prepare only this part of the source, and its share of the tokens.
        chunk_size: Documents tokenized in one go; changes no byte of the result.
        num_workers: Threads that tokenize; `None` is one for each core. Changes no byte of the result.
        prefetch: Chunks in work or waiting at any time; `None` is four for each worker.
        overwrite: Replace prepared data that are there already.
    """

    source: str | SourceOptions
    max_tokens: int | None = None
    val_tokens: int | None = None
    tokenizer: str | None = None
    output_dir: Path | None = None
    shard_tokens: int = DEFAULT_SHARD_TOKENS
    format: str = "bin"
    max_length: int | None = None
    over_length: OverLength = OverLength.CUT
    bos: bool = True
    bos_token: str | None = None
    eos: bool = False
    seed: int = 0
    shuffle_buffer: int = 0
    partition: Partition | None = None
    chunk_size: int = DEFAULT_CHUNK_SIZE
    num_workers: int | None = None
    prefetch: int | None = None
    overwrite: bool = False

    @property
    def reading(self) -> SourceOptions:
        """What is read."""
        return SourceOptions(sources=(self.source,)) if isinstance(self.source, str) else self.source

    @property
    def workers(self) -> int:
        """Threads that tokenize."""
        return self.num_workers or available_cores()

    def check(self) -> None:
        """Refuse numbers out of range.

        Raises:
            UsageError: One is; the message names its option.
        """
        limits: dict[str, tuple[int | None, int, int | None]] = {
            "--max-tokens": (self.max_tokens, 1, None),
            "--val-tokens": (self.val_tokens, 0, None),
            "--shard-tokens": (self.shard_tokens, 1, MAX_SHARD_TOKENS),
            "--max-length": (self.max_length, 1, None),
            "--seed": (self.seed, 0, 2**64 - 1),
            "--shuffle-buffer": (self.shuffle_buffer, 0, None),
            "--chunk-size": (self.chunk_size, 1, None),
            "--num-workers": (self.num_workers, 1, None),
            "--prefetch": (self.prefetch, 1, None),
        }
        for option, (value, low, high) in limits.items():
            if value is not None and (value < low or (high is not None and value > high)):
                rule = f"at least {low}" if high is None else f"in {low} to {high:,}"
                raise UsageError(f"{option} is {value:,}, but must be {rule}")


def parse_partition(text: str) -> Partition:
    """Read `i/N`, where parts are counted from 0.

    Raises:
        UsageError: It is not of this form, or there is no such part.

    >>> parse_partition("3/8")
    Partition(index=3, count=8)
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip(), re.ASCII)
    if match is None:
        raise UsageError(f"{text!r} is no part", help="write it like 0/8: parts are counted from 0")
    index, count = int(match[1]), int(match[2])
    if index >= count:
        raise UsageError(f"there is no part {text}: of {count} parts, the last is {max(count - 1, 0)}/{count}")
    return Partition(index, count)


def parse_token_count(text: str) -> int:
    """Read a number of tokens: digits with `_`, decimals, an exponent, and K, M, B or T.

    Raises:
        UsageError: The text is none of these, or names no whole number of tokens.

    >>> [parse_token_count(text) for text in ("500M", "1.5e9", "2_000_000", "2B")]
    [500000000, 1500000000, 2000000, 2000000000]
    """
    match = _COUNT.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a number of tokens", help="write it like 500M, 2B, 1.5e9 or 2_000_000")
    # Decimal, because 1.1e9 as a binary fraction is no whole number.
    count = Decimal(match["number"]) * _UNITS[match["unit"].lower()]
    if count != int(count):
        raise UsageError(f"{text!r} is {count} tokens, which is no whole number")
    return int(count)
