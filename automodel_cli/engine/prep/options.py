"""What a user asks of preparation, and how numbers of tokens are written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from automodel_cli.errors import UsageError

DEFAULT_SHARD_TOKENS = 100_000_000

_COUNT = re.compile(r"(?P<number>\d+(_\d+)*(\.\d+)?(e\+?\d+)?)(?P<unit>[kmbt]?)", re.IGNORECASE | re.ASCII)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


@dataclass(frozen=True)
class PrepOptions:
    """Settings of one preparation.

    Attributes:
        source: A preset's name, a file, or a glob pattern of files.
        max_tokens: Exact size of the training split; `None` takes the preset's default, or all.
        val_tokens: Size of the validation split, reached with whole documents; 0 makes none;
            `None` holds out the source's usual share.
        tokenizer: As for `load_tokenizer`; `None` takes the preset's default.
        output_dir: `None` is `data/<preset>` or `data/<name of the file>`.
        shard_tokens: Every shard but the last of a split holds exactly this many tokens.
        text_column: The field that holds the text of a JSON line or a row.
        overwrite: Replace prepared data that are there already.
    """

    source: str
    max_tokens: int | None = None
    val_tokens: int | None = None
    tokenizer: str | None = None
    output_dir: Path | None = None
    shard_tokens: int = DEFAULT_SHARD_TOKENS
    text_column: str = "text"
    overwrite: bool = False


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
