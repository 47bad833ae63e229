"""The copy that a save writes while training goes on: equal, its own, and in the same memory every time."""

from __future__ import annotations

import pytest
import torch

from automodel_cli.engine.checkpoint.rank_files import HostCopy, RankFiles, TensorFile
from automodel_cli.errors import CheckpointError


def share_of(**tensors: torch.Tensor) -> RankFiles:
    return RankFiles({"state/train_state.json": "{}"}, (TensorFile("model/model.safetensors", tensors, {"a": (2, 0)}),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.float8_e4m3fn])
def test_the_copy_stays_when_training_goes_on(dtype):
    """Names, offsets, texts and values are those of the moment, of a view that is not contiguous, too."""
    live = torch.arange(24).reshape(4, 6).to(dtype)
    expected = live.T.clone()

    copy = HostCopy().of(share_of(a=live.T))
    live.zero_()

    assert copy.files[0].tensors["a"].to(torch.float32).equal(expected.to(torch.float32))
    assert (copy.files[0].name, copy.files[0].offsets) == ("model/model.safetensors", {"a": (2, 0)})
    assert copy.texts == {"state/train_state.json": "{}"}


def test_the_next_copy_takes_the_same_memory():
    """Also of a parameter that wants a gradient; a tensor of another size or type gets memory of its own."""
    host = HostCopy()
    weights = torch.nn.Parameter(torch.zeros(8))
    first = host.of(share_of(a=weights)).files[0].tensors["a"].data_ptr()
    with torch.no_grad():
        weights.add_(1)

    again = host.of(share_of(a=weights)).files[0].tensors["a"]
    other = host.of(share_of(a=torch.ones(9))).files[0].tensors["a"]

    assert (again.data_ptr(), again.requires_grad, again.tolist()) == (first, False, [1.0] * 8)
    assert other.tolist() == [1.0] * 9


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory")])
def test_a_host_without_memory_is_told_what_would_work(monkeypatch, error):
    """One message with the bytes and the key, and training can go on."""

    def full(*sizes, **options):
        raise error

    monkeypatch.setattr(torch, "empty", full)

    with pytest.raises(CheckpointError, match="copy of 32 bytes") as caught:
        HostCopy().of(share_of(a=torch.zeros(8)))

    assert "checkpoint.is_async=false" in caught.value.help


@pytest.mark.gpu
def test_copies_from_a_gpu_are_pinned_and_complete():
    """After the one wait, the values are those before the training went on."""
    live = torch.arange(1 << 20, device="cuda", dtype=torch.float32)

    copy = HostCopy().of(share_of(a=live)).files[0].tensors["a"]
    live.zero_()

    assert copy.is_pinned()
    assert copy.equal(torch.arange(1 << 20, dtype=torch.float32))
