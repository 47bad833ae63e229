"""Files of tensors are those of safetensors, byte for byte, and equal tensors give equal files."""

from __future__ import annotations

import hashlib
import resource

import pytest
import torch
from safetensors.torch import save_file

from automodel_cli.engine.checkpoint.write_tensors import DTYPES, write_state_dict, write_tensors
from automodel_cli.errors import CheckpointError


@pytest.fixture
def tensors():
    """Every type that there is, a scalar, nothing, a transpose, and names that JSON must escape."""
    generator = torch.Generator().manual_seed(0)
    found = {f'{dtype} "é\\': (torch.randn(3, 2, generator=generator) * 9).to(dtype) for dtype in DTYPES}
    return {**found, "scalar": torch.tensor(3.0), "empty": torch.zeros(0, 3), "turned": torch.randn(5, 4).T}


def test_a_file_of_whole_tensors_is_that_of_safetensors(tmp_path, tensors):
    """And the record says what is on the disk."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs", {"format": "pt"})

    record = write_tensors(tmp_path / "ours", tensors)

    content = (tmp_path / "ours").read_bytes()
    assert content == (tmp_path / "theirs").read_bytes()
    assert record.num_bytes == len(content)
    assert record.sha256 == hashlib.sha256(content).hexdigest()


def test_a_file_of_blocks_has_the_same_bytes_every_time(tmp_path, tensors):
    """Whatever the order in which they are given."""
    offsets = {name: (1,) * tensor.dim() for name, tensor in tensors.items()}

    first = write_tensors(tmp_path / "first", tensors, offsets)
    second = write_tensors(tmp_path / "second", dict(reversed(tensors.items())), offsets)

    assert first == second


def test_a_type_that_the_format_lacks_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"w is of type torch.complex128"):
        write_tensors(tmp_path / "x", {"w": torch.zeros(1, dtype=torch.complex128)})


@pytest.mark.parametrize("limit_bytes", [0, 100, 3000, 40_000])
def test_a_disk_that_is_full_is_an_error_of_the_disk(tmp_path, limit_bytes):
    """Wherever the write fails, in the archive's own parts, too, where torch only sees a wrong position."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_state_dict(tmp_path / "x", {"a": torch.zeros(10_000), "b": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_view_takes_no_more_room_than_its_elements(tmp_path):
    """Of a tensor that shares a larger memory, only its own part is written."""
    rows = torch.zeros(100_000)[:10]

    record = write_state_dict(tmp_path / "x", {"a": rows})

    assert record.num_bytes < 4000
    assert torch.equal(torch.load(tmp_path / "x", weights_only=True)["a"], rows)
