"""Weights as `torch.save` writes them: what cannot be written is an error like any other."""

from __future__ import annotations

import resource

import pytest
import torch

from automodel_cli.engine.checkpoint.pickled_file import write_state_dict


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
