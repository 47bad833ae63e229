"""Headers of safetensors files are read as the format means them, and hostile ones are refused."""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from automodel_cli.engine.checkpoint.tensor_header import MAX_HEADER_BYTES, read_tensor_header
from automodel_cli.errors import CheckpointError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def written(path: Path, header: Any, data_bytes: int = 0, claimed_bytes: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if claimed_bytes is None else claimed_bytes) + raw + bytes(data_bytes))
    return path


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=3)),
        max_size=5,
    )
)
def test_what_safetensors_writes_is_read_back(kinds: dict[str, tuple[str, list[int]]]) -> None:
    """Names, dtypes, shapes and sizes, for scalars and empty tensors as well."""
    tensors = {name: torch.zeros(shape).to(DTYPES[dtype]) for name, (dtype, shape) in kinds.items()}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "x.safetensors"
        save_file(tensors, path, metadata={"format": "pt"})

        found = read_tensor_header(path)

    assert {name: (info.dtype, list(info.shape)) for name, info in found.items()} == kinds
    assert {name: info.num_bytes for name, info in found.items()} == {
        name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()
    }


HOSTILE: dict[str, Any] = {
    "not an object": [1, 2],
    "too deep": b"[" * 200_000,
    "not JSON": b"{'a': 1}",
    "not text": b"\xff" * 10,
    "a name twice": b'{"a": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}, "a": {}}',
    "a number as entry": {"a": 3},
    "a key too many": {"a": {**entry(), "pickle": "cos"}},
    "a key too few": {"a": {"dtype": "F32", "shape": [2]}},
    "unknown dtype": {"a": entry(dtype="F31")},
    "dtype that cannot be hashed": {"a": entry(dtype=[])},
    "negative dimension": {"a": entry(shape=[-2, -1])},
    "fractional dimension": {"a": entry(shape=[2.0])},
    "boolean dimension": {"a": entry(shape=[True, 2])},
    "dimensions whose product is absurd": {"a": entry(shape=[2**62] * 64)},
    "too many dimensions": {"a": entry(shape=[1] * 10_000)},
    "number of absurd length": b'{"a": {"dtype":"F32","shape":[' + b"9" * 10_000 + b'],"data_offsets":[0,8]}}',
    "offsets backwards": {"a": entry(offsets=[8, 0])},
    "three offsets": {"a": entry(offsets=[0, 8, 8])},
    "offsets of another size": {"a": entry(offsets=[0, 4])},
    "overlap": {"a": entry(), "b": entry(offsets=[4, 12])},
    "the same bytes twice": {"a": entry(), "b": entry()},
    "gap": {"a": entry(), "b": entry(offsets=[12, 20])},
    "not from the beginning": {"a": entry(offsets=[4, 12])},
    "beyond the end": {"a": entry(shape=[4], offsets=[0, 16])},
    "bytes that belong to nobody": {},
}


@pytest.mark.parametrize("header", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_header_is_refused(tmp_path: Path, header: Any) -> None:
    """Each breaks one rule of the format; the error names the file and is short."""
    path = written(tmp_path / "x.safetensors", header, data_bytes=8)

    with pytest.raises(CheckpointError, match="not a sound safetensors header") as caught:
        read_tensor_header(path)

    assert caught.value.where == str(path)
    assert len(caught.value.message) < 2000


@pytest.mark.parametrize("claimed_bytes", [2**64 - 1, 2**63, MAX_HEADER_BYTES + 1, 3])
def test_a_claimed_size_is_never_allocated(tmp_path: Path, claimed_bytes: int) -> None:
    """More than the file or the format allows is refused by its number."""
    path = written(tmp_path / "x.safetensors", b"{}", claimed_bytes=claimed_bytes)

    with pytest.raises(CheckpointError, match="at most 2 are possible"):
        read_tensor_header(path)


def test_the_limit_holds_in_a_file_that_is_long_enough(tmp_path: Path) -> None:
    """A sparse file of a terabyte does not make a header of a gigabyte readable."""
    path = written(tmp_path / "x.safetensors", b"{}", claimed_bytes=2**30)
    with path.open("rb+") as file:
        file.truncate(2**40)

    with pytest.raises(CheckpointError, match="at most 33,554,432 are possible"):
        read_tensor_header(path)


@pytest.mark.parametrize("num_bytes", range(9))
def test_a_file_too_short_for_a_header_is_refused(tmp_path: Path, num_bytes: int) -> None:
    """From nothing at all to a header length without a header."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(bytes(num_bytes))

    with pytest.raises(CheckpointError):
        read_tensor_header(path)


@given(st.binary(max_size=200).filter(lambda content: content.strip() != b"{}"))  # a file without tensors is sound
def test_random_bytes_give_one_kind_of_error(content: bytes) -> None:
    """Whatever follows a plausible length, nothing but a CheckpointError comes out."""
    with tempfile.TemporaryDirectory() as directory:
        path = written(Path(directory) / "x.safetensors", content)

        with pytest.raises(CheckpointError):
            read_tensor_header(path)
