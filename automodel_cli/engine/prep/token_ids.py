"""Checks token ids before they are turned into text."""

from __future__ import annotations

import operator
from collections.abc import Iterable

from automodel_cli.errors import DataError


def check_ids(ids: Iterable[int], tokenizer_name: str, vocab_size: int) -> list[int]:
    """The ids as plain integers.

    Raises:
        DataError: An id is outside 0 to `vocab_size - 1`.
    """
    plain = [operator.index(token) for token in ids]
    outside = next((token for token in plain if not 0 <= token < vocab_size), None)
    if outside is not None:
        raise DataError(
            f"token id {outside:,} cannot be decoded: the ids of tokenizer {tokenizer_name!r} go from 0 to "
            f"{vocab_size - 1:,}"
        )
    return plain
