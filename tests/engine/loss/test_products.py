"""Whichever library multiplies, the product is that of fp32, and the same every time."""

from __future__ import annotations

import pytest
import torch

from automodel_cli.engine.loss import products
from automodel_cli.engine.loss.products import times_transposed

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@needs_onednn
@pytest.mark.parametrize("with_onednn", [True, False])
@pytest.mark.parametrize("strided", [True, False])
def test_a_product_is_exact_to_fp32_and_repeats_bit_for_bit(monkeypatch, with_onednn, strided):
    """Against fp64, with transposed inputs as the gradients of a head have them."""
    monkeypatch.setattr(products, "onednn_is_faster", lambda: with_onednn)
    torch.manual_seed(0)
    a = torch.randn(70, 65).T if strided else torch.randn(65, 70)
    b = torch.randn(70, 33).T if strided else torch.randn(33, 70)

    found = times_transposed(a, b, torch.empty(65, 33))

    torch.testing.assert_close(found.double(), a.double() @ b.double().T, rtol=1e-5, atol=1e-5)
    assert torch.equal(found, times_transposed(a, b))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_are_multiplied_by_torch(monkeypatch, dtype):
    """In the memory that is given."""
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    a, b, out = torch.ones(2, 3, dtype=dtype), torch.ones(4, 3, dtype=dtype), torch.empty(2, 4, dtype=dtype)

    assert times_transposed(a, b, out) is out
    assert out.tolist() == [[3.0] * 4] * 2


@pytest.mark.parametrize(("maker", "expected"), [("AuthenticAMD", True), ("GenuineIntel", False)])
def test_onednn_is_for_processors_on_which_mkl_falls_back(monkeypatch, tmp_path, maker, expected):
    """By what the machine says of itself, so that a resumed run multiplies in the same way."""
    facts = tmp_path / "cpuinfo"
    facts.write_text(f"vendor_id : {maker}\n")
    monkeypatch.setattr(products, "_CPU_FACTS", facts)
    for backend in ("mkl", "mkldnn"):
        monkeypatch.setattr(getattr(torch.backends, backend), "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")

    assert products._mkl_falls_back.__wrapped__() is (expected and hasattr(torch.ops.mkldnn, "_linear_pointwise"))


@pytest.mark.parametrize("by_columns", [True, False])
def test_a_factor_with_gaps_is_multiplied_by_torch(monkeypatch, by_columns):
    """In the memory that is given: oneDNN would take a thousand times as long."""
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    large = torch.ones(8, 8)
    b, out = large[:4, :3].T if by_columns else large[:3, :4], torch.empty(2, 3)

    assert times_transposed(torch.ones(2, 4), b, out) is out
    assert out.tolist() == [[4.0] * 3] * 2
