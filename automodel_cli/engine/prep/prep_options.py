"""What a user asks of preparation: one table for the dataclasses and for the command line.

A field that is made by `option` is an option of `amcli prep`, in the order of the fields. This module imports only the
standard library, since the help page is made from it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any

from automodel_cli.errors import UsageError

MAX_DOCUMENT_BYTES = 50_000_000
RETRY_SECONDS = 600.0
DEFAULT_SHARD_TOKENS = 100_000_000
# Measured with `python benchmarks/prep.py --chunk-sizes`: fewer documents cost calls, more cost waiting for the last.
DEFAULT_CHUNK_SIZE = 256
# As in `engine.shards.format`, which imports numpy, and the command line must not.
MAX_SHARD_TOKENS = 2**31 - 1

_COUNT = re.compile(r"(?P<number>\d+(_\d+)*(\.\d+)?(e\+?\d+)?)(?P<unit>[kmbt]?)", re.IGNORECASE | re.ASCII)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def available_cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


class TextDocuments(StrEnum):
    """What is one document in a plain text file."""

    FILE = "file"
    LINE = "line"
    BLOCK = "block"


class OnBadDocument(StrEnum):
    """What happens when something in the source cannot be a document."""

    SKIP = "skip"
    FAIL = "fail"


class StdinFormat(StrEnum):
    """What standard input holds."""

    TEXT = "text"
    JSONL = "jsonl"


class OverLength(StrEnum):
    """What happens to a document that is longer than `--max-length`."""

    CUT = "cut"
    SPLIT = "split"


@dataclass(frozen=True)
class Partition:
    """Part `index`, from 0, of `count` parts of a source."""

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


def parse_source_args(text: str) -> dict[str, Any]:
    """Read the arguments of a source that is code.

    Raises:
        UsageError: They are no JSON object.
    """
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise UsageError(
            f"--source-args {text!r} is no JSON object", help="""write it like --source-args '{"size": 3}'"""
        )
    return arguments


def option(default: Any, help: str, **shown: Any) -> Any:
    """A field that is also an option of `amcli prep`.

    Args:
        default: The value where the option is not given.
        help: Its line of the help page.
        shown: `metavar`, `min`; `names`, where they do not follow from the field's name; and `parse`, which makes
            the value from the text that the user writes.
    """
    return field(default=default, metadata={"help": help, **shown})


def ignore(_: object) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class SourceOptions:
    """Which documents a user asks for; the help of each option says what it means.

    Attributes:
        sources: A preset's name, `-` for standard input, code as `FILE.py:NAME`, or files and glob
            patterns; may be empty where `dataset` is given.
        set_name: `None` takes the preset's or the only one.
        text_column: `None` takes the preset's, or `text`.
        pinned_revision: Commit that an earlier run of the same preparation recorded: it is read
            instead of what `revision` names today, so that the run continues with the same bytes.
        text_documents: `None` takes each file whole, or, where there is only one file, cuts it at
            blank lines into pieces of 8 KiB and more.
        max_document_bytes: In bytes of UTF-8.
        retry_seconds: How long a lost connection is tried again before the run ends.
        on_wait: Called before every wait for a lost connection.
    """

    sources: tuple[str, ...] = ()
    dataset: str | None = option(None, "A data set on the Hugging Face hub.", metavar="NAME")
    set_name: str | None = option(None, "Its configuration, such as sample-10BT.", metavar="NAME")
    split: str | None = option(None, "Its split.  [default: train]")
    revision: str | None = option(None, "Its branch, tag or commit.  [default: the newest]")
    text_column: str | None = option(None, "Column or field that holds the text.  [default: text]")
    text_documents: TextDocuments | None = option(
        None, "What is a document in a text file.  [default: file; a single file is cut]"
    )
    stdin_format: StdinFormat | None = option(
        None, "What comes on standard input (`-`).  [default: seen by its first byte]"
    )
    source_args: Mapping[str, Any] | None = option(
        None, "Arguments of FILE.py:NAME, a JSON object.", metavar="JSON", parse=parse_source_args
    )
    max_document_bytes: int = option(MAX_DOCUMENT_BYTES, "Longer documents are bad.", metavar="N", min=1)
    on_bad_document: OnBadDocument = option(
        OnBadDocument.SKIP, "Leave bad documents out and count them, or stop at the first.", names=("--on-bad-doc",)
    )
    pinned_revision: str | None = None
    retry_seconds: float = RETRY_SECONDS
    on_wait: Callable[[str], None] = ignore


@dataclass(frozen=True)
class PrepOptions:
    """Settings of one preparation; the help of each option says what it means.

    Attributes:
        source: What is read; a plain string is a preset's name, a file, or a glob pattern of files.
        max_tokens: `None` takes the preset's default, or all.
        val_tokens: 0 makes no validation split; `None` holds out the source's usual share.
        tokenizer: As for `load_tokenizer`; `None` takes the preset's default.
        bos_token: `None` takes the tokenizer's own.
        output_dir: `None` is `data/<preset>` or `data/<name of the file>`.
        shard_tokens: Every shard but the last of a split holds exactly this many tokens.
        format: A name in `engine.shards.formats`.
        partition: Prepare only this part of the source, and its share of the tokens.
        num_workers: Changes no byte of the result, nor do `chunk_size` and `prefetch`.
    """

    source: str | SourceOptions
    max_tokens: int | None = option(
        None, "Exact size of the training split: 500M, 2B, 1.5e9.", metavar="N", parse=parse_token_count
    )
    val_tokens: int | None = option(
        None, "Hold out whole documents of about N tokens; 0 none.", metavar="N", parse=parse_token_count
    )
    tokenizer: str | None = option(None, "bytes, gpt2, a directory, or a name on the Hugging Face hub.")
    bos: bool = option(True, "Begin each document with BOS.")
    bos_token: str | None = option(None, "Entry of the vocabulary to use as BOS.", metavar="TOKEN")
    eos: bool = option(False, "End each document with EOS.")
    max_length: int | None = option(None, "Longest document in tokens, BOS and EOS included.", metavar="N")
    over_length: OverLength = option(OverLength.CUT, "Cut longer documents, or split them into several.")
    shuffle_buffer: int = option(0, "Shuffle within blocks of N documents; 0 keeps the order.", metavar="N")
    seed: int = option(0, "Seed of the shuffling.")
    output_dir: Path | None = option(None, "Where the shards go.  [default: data/<source>]")
    shard_tokens: int = option(
        DEFAULT_SHARD_TOKENS, "Tokens per shard file.  [default: 100M]", metavar="N", parse=parse_token_count
    )
    format: str = option("bin", "bin, legacy (20240520) or megatron.")
    partition: Partition | None = option(
        None, "Prepare part I of N (from 0) into a directory of its own.", metavar="I/N", parse=parse_partition
    )
    num_workers: int | None = option(None, "Threads that tokenize.  [default: cores]", metavar="N")
    chunk_size: int = option(DEFAULT_CHUNK_SIZE, "Documents tokenized in one go.", metavar="N")
    prefetch: int | None = option(None, "Chunks in work or waiting.  [default: 4 per worker]", metavar="N")
    overwrite: bool = option(False, "Replace data that are there already.", names=("--overwrite",))

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
