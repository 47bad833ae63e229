"""Numbers of tensors, held against torch."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import save_file

from automodel_cli.engine.checkpoint import tensor_values as module
from automodel_cli.engine.checkpoint.foreign import read_foreign
from automodel_cli.engine.checkpoint.tensor_values import compare_tensors, tensor_stats, warnings


@pytest.fixture
def stats(tmp_path):
    """Writes tensors and returns their numbers by name."""

    def run(tensors):
        save_file(tensors, tmp_path / "x.safetensors")
        found = read_foreign(tmp_path / "x.safetensors")
        return {name: tensor_stats(name, tensor) for name, tensor in found.stored.items()}

    return run


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("piece", [7, 1 << 22])
def test_the_numbers_are_those_of_torch(stats, dtype, piece, monkeypatch):
    """In every type, and however many pieces a tensor is read in."""
    monkeypatch.setattr(module, "_PIECE", piece)
    tensor = torch.randn(13, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    tensor[4] = 0

    found = stats({"w": tensor})["w"]

    wide = tensor.double()
    assert (found.minimum, found.maximum) == (wide.min().item(), wide.max().item())
    assert found.mean == pytest.approx(wide.mean().item(), abs=1e-12)
    assert found.rms == pytest.approx(wide.square().mean().sqrt().item())
    assert found.zero_rows == 1
    assert list(found.histogram) == torch.histc(wide, 16).long().tolist()


def test_what_is_no_number_is_counted_and_left_out(stats):
    """NaN and both infinities; a tensor of nothing else has no numbers."""
    found = stats({"w": torch.tensor([1.0, math.nan, math.inf, -math.inf, 3.0]), "x": torch.tensor([math.nan])})

    assert (found["w"].num_nan, found["w"].num_inf, found["w"].mean) == (1, 2, 2.0)
    assert (found["x"].minimum, found["x"].histogram) == (None, ())


def test_integers_empty_tensors_scalars_and_small_floats(stats):
    """Whatever a checkpoint may hold gives an answer."""
    found = stats(
        {
            "steps": torch.arange(10),
            "empty": torch.zeros(0, 3),
            "one": torch.tensor(2.0),
            "f8": torch.ones(4).to(torch.float8_e4m3fn),
        }
    )

    assert (found["steps"].maximum, found["empty"].mean, found["one"].rms, found["f8"]) == (9.0, None, 2.0, None)


def test_what_looks_wrong_is_said(stats):
    """NaN, dead rows, one layer far larger than its siblings; and nothing about sound weights."""
    sound = {f"h.{layer}.w": torch.randn(6, 6) for layer in range(5)}
    assert warnings(list(stats(sound).values())) == []

    broken = {name: tensor.clone() for name, tensor in sound.items()}
    broken["h.1.w"][2] = 0
    broken["h.2.w"][0, 0] = math.nan
    broken["h.3.w"] *= 100
    said = warnings(list(stats(broken).values()))

    assert len(said) == 3
    assert any("h.1.w: 1 of 6 rows are zero" in line for line in said)
    assert any("h.2.w: 1 NaN" in line for line in said)
    assert any("h.3.w: RMS" in line for line in said)


def test_a_file_that_shrank_is_an_error_not_a_crash(tmp_path):
    """The header was read; then the file was cut."""
    save_file({"w": torch.ones(1000)}, tmp_path / "x.safetensors")
    found = read_foreign(tmp_path / "x.safetensors")
    with (tmp_path / "x.safetensors").open("r+b") as file:
        file.truncate(200)

    with pytest.raises(OSError, match="ends before"):
        tensor_stats("w", found.stored["w"])


def test_differences_by_layer(tmp_path):
    """Names, shapes and the relative change of what both have."""
    torch.manual_seed(0)
    old = {"h.0.w": torch.randn(4, 4), "h.1.w": torch.randn(4, 4), "gone": torch.ones(1), "wide.w": torch.ones(2)}
    new = {"h.0.w": old["h.0.w"] * 1.1, "h.1.w": old["h.1.w"], "fresh": torch.ones(1), "wide.w": torch.ones(3)}
    save_file(old, tmp_path / "old.safetensors")
    save_file(new, tmp_path / "new.safetensors")

    found = compare_tensors(read_foreign(tmp_path / "old.safetensors"), read_foreign(tmp_path / "new.safetensors"))

    assert (found.only_old, found.only_new, found.unchanged) == (("gone",), ("fresh",), 1)
    assert found.reshaped == ("wide.w: (2,) F32 -> (3,) F32",)
    assert found.change_by_layer == {"h.0": pytest.approx(0.1, rel=1e-5), "h.1": 0.0}
