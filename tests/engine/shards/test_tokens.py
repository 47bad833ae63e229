"""The shard format, read and written byte by byte without the code under test."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from automodel_cli.engine.shards.tokens import (
    HEADER_BYTES,
    LEGACY_MAGIC,
    MAGIC,
    MAX_SHARD_TOKENS,
    Tokens,
    build_header,
    read_shard_header,
    token_dtype,
)
from automodel_cli.errors import DataError


def shard_bytes(tokens, *, magic=MAGIC, version=1, count=None, itemsize=2, code="H"):
    """A shard as the format's description has it, made with `struct`."""
    count = len(tokens) if count is None else count
    return (
        struct.pack("<4i", magic, version, count, itemsize)
        + bytes(1008)
        + struct.pack(f"<{len(tokens)}{code}", *tokens)
    )


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({"itemsize": 2, "code": "H"}, [0, 1, 65_535]),
        ({"itemsize": 4, "code": "I"}, [0, 70_000, 4_294_967_295]),
        ({"magic": LEGACY_MAGIC, "itemsize": 0, "code": "H"}, [5, 6, 50_256]),
        ({}, []),
    ],
    ids=["uint16", "uint32", "legacy", "empty"],
)
def test_every_form_of_shard_is_read_as_it_was_packed(tmp_path, options, tokens):
    """Both magics and both token sizes give the packed ids back; the legacy form ignores header[3]."""
    path = tmp_path / "a.bin"
    path.write_bytes(shard_bytes(tokens, **options))

    info = read_shard_header(path)

    assert info.num_tokens == len(tokens)
    assert Tokens(info)[:].tolist() == tokens


@given(num_tokens=st.integers(0, MAX_SHARD_TOKENS), itemsize=st.sampled_from([2, 4]))
def test_a_header_holds_four_little_endian_numbers_and_zeros(num_tokens, itemsize):
    """Up to the largest shard, other readers of the format find what they expect."""
    header = build_header(num_tokens, np.dtype(f"<u{itemsize}"))

    assert len(header) == HEADER_BYTES
    assert struct.unpack("<256i", header) == (MAGIC, 1, num_tokens, itemsize, *[0] * 252)


@pytest.mark.parametrize(
    ("content", "numbers"),
    [
        (b"x" * 1000, ["1,000", "1,024"]),
        (shard_bytes([1], magic=7), ["7", str(MAGIC), str(LEGACY_MAGIC)]),
        (shard_bytes([1], version=3), ["version 3", "version 1"]),
        (shard_bytes([1], itemsize=8), ["8 bytes per token", "2 and 4"]),
        (shard_bytes([1, 2], count=3), ["1,028", "3 tokens", "1,030"]),
        (shard_bytes([1, 2], count=1), ["1,028", "1 tokens", "1,026"]),
        (shard_bytes([], count=-5), ["-5", "2,147,483,647"]),
    ],
    ids=["short", "magic", "version", "itemsize", "cut", "too long", "overflow"],
)
def test_a_damaged_shard_is_refused_with_its_numbers(tmp_path, content, numbers):
    """The message says what was found and what the rule is, and names the file."""
    path = tmp_path / "bad.bin"
    path.write_bytes(content)

    with pytest.raises(DataError) as caught:
        read_shard_header(path)

    assert str(path) in str(caught.value)
    assert [number for number in numbers if number not in str(caught.value)] == []


def test_a_missing_shard_is_a_data_error(tmp_path):
    """An absent file is the user's data that are missing, not a defect."""
    with pytest.raises(DataError, match=r"none\.bin.*cannot be read"):
        read_shard_header(tmp_path / "none.bin")


def test_mapped_tokens_cannot_be_written(tmp_path):
    """A stray assignment must not change the user's data."""
    path = tmp_path / "a.bin"
    path.write_bytes(shard_bytes([1, 2, 3]))
    tokens = Tokens(read_shard_header(path))[:]

    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 9


@given(st.integers(1, 2**32))
def test_the_token_type_holds_the_largest_id_and_is_as_small_as_possible(vocab_size):
    """uint16 exactly as long as the largest id fits it."""
    assert token_dtype(vocab_size).itemsize == (2 if vocab_size - 1 <= 65_535 else 4)
