"""Whichever library multiplies, the product is that of fp32, and the same every time."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import pytest
import torch

from automodel_cli.engine.loss import products
from automodel_cli.engine.loss.products import is_worth_it, multiply_by_onednn, onednn_product, times_transposed

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
needs_onednn = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this torch has no oneDNN",
)

# N, K, M: a layer, its input's gradient, its weight's by either kernel, odd sizes, and the least that is taken.
SIZES = [(512, 192, 64), (64, 256, 300), (1024, 64, 96), (1500, 33, 257), (16, 1024, 512), (256, 128, 128)]


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


def matrix(rows: int, columns: int, *, by_columns: bool, padding: int) -> torch.Tensor:
    """Random numbers that lie by rows or by columns, whole or as part of a larger matrix."""
    if by_columns:
        return matrix(columns, rows, by_columns=False, padding=padding).T
    return torch.randn(rows + padding, columns + padding)[:rows, :columns]


@needs_onednn
@pytest.mark.parametrize(("n", "k", "m"), SIZES)
def test_a_product_of_every_layer_is_exact_to_fp32_and_repeats_bit_for_bit(n, k, m):
    """Against fp64, however the factors lie in memory, with and without a bias."""
    torch.manual_seed(0)
    bias = torch.randn(m)
    for a_by, b_by, padding in itertools.product((False, True), (False, True), (0, 5)):
        a = matrix(n, k, by_columns=a_by, padding=padding)
        b = matrix(k, m, by_columns=b_by, padding=0)
        expected = a.double() @ b.double()
        for added in (None, bias):
            found = onednn_product(a, b, added)
            assert found.is_contiguous()
            assert found.layout == torch.strided
            right = expected if added is None else expected + added
            torch.testing.assert_close(found.double(), right, rtol=0, atol=4e-4)
            assert torch.equal(found, onednn_product(a, b, added))


def test_small_odd_and_other_products_stay_with_torch():
    """What oneDNN would do slower, or might read wrongly: other types, gaps, overlaps, shapes that do not fit."""
    large = torch.zeros(512, 512)

    assert is_worth_it(large, large)
    assert is_worth_it(large, large.T)
    assert not is_worth_it(large[:64, :64], large[:64, :64])
    assert not is_worth_it(large[:8], large)
    assert not is_worth_it(large.bfloat16(), large.bfloat16())
    assert not is_worth_it(large.double(), large.double())
    assert not is_worth_it(large, torch.zeros(1, 1).expand(512, 512))
    assert not is_worth_it(large, torch.zeros(511, 512))
    # A gap after each row of the second factor costs a thousand times the time; before the product the first is copied.
    assert not is_worth_it(large[:, :256], torch.zeros(256, 600)[:, :512])
    assert not is_worth_it(large[:, :256], torch.zeros(512, 300)[:, :256].T)
    assert is_worth_it(large[:, :256], torch.zeros(256, 512))
    assert not is_worth_it(large[:, ::2], large[::2])
    assert not is_worth_it(torch.zeros(512), large)


def test_a_copy_by_one_thread_must_pay_for_all(monkeypatch):
    """A transposed factor is copied first: more threads ask for more columns, until the sums are long."""
    a, long = torch.zeros(500, 512).T, torch.zeros(1024, 512).T
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert is_worth_it(a, torch.zeros(500, 128))
    assert not is_worth_it(a, torch.zeros(500, 100))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert not is_worth_it(a, torch.zeros(500, 128))
    assert is_worth_it(long, torch.zeros(1024, 128))


def test_a_library_that_is_wrong_or_gone_is_not_used(monkeypatch):
    """It proves itself first; torch's own kernels stay where it does not."""
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(products, "_registered", lambda: pytest.fail("a kernel was replaced"))
    monkeypatch.setattr(products, "onednn_product", lambda a, b, bias: torch.zeros(a.shape[0], b.shape[1]))
    assert not products._kernels_are_replaced.__wrapped__()

    def gone(*_):
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(products, "onednn_product", gone)
    assert not products._kernels_are_replaced.__wrapped__()


def test_nothing_changes_where_torch_multiplies_well(monkeypatch):
    """As on processors of Intel's, for which MKL is written."""
    monkeypatch.setattr(products, "onednn_is_faster", lambda: False)
    monkeypatch.setattr(products, "_registered", lambda: pytest.fail("a kernel was replaced"))
    assert not multiply_by_onednn()


# In a process of its own: the kernels stay replaced for as long as it lives.
PROGRAM = """
import json, sys, warnings
import torch
from automodel_cli.engine.models.gpt2 import build_gpt2_model
from automodel_cli.engine.loss import products
from automodel_cli.engine.loss import products

warnings.simplefilter("error")
torch.manual_seed(0)
products._mkl_falls_back = lambda: True
asked = []
if products.multiply_by_onednn(sys.argv[1]):
    product = products.onednn_product
    products.onednn_product = lambda *factors: asked.append(1) or product(*factors)
model = build_gpt2_model(vocab_size=64, n_positions=128, n_embd=128, n_layer=1, n_head=4)
logits = model(torch.arange(512).reshape(4, 128) % 64).logits
logits.logsumexp(-1).sum().backward()
weight = torch.randn(512, 512, requires_grad=True)
(torch.ones(512, 512) @ weight).sum().backward()  # an expanded gradient
errors = []
for wrong in ((torch.ones(512, 511), torch.ones(512, 512)), (torch.ones(512, 512), torch.ones(512, 512).double())):
    try:
        torch.mm(*wrong)
    except RuntimeError as error:
        errors.append(str(error))
gradients = [p.grad.flatten()[::97].tolist() for p in model.parameters()]
print(json.dumps({"asked": len(asked), "errors": errors, "gradients": gradients, "expanded": weight.grad.sum().item()}))
"""


@needs_onednn
def test_a_model_trains_on_the_same_gradients():
    """Layers, forward and backward, and torch's own words about factors that do not fit.

    `cpu_matmul: torch` leaves every product to torch.
    """
    found = {}
    for library in ("auto", "torch"):
        command = [sys.executable, "-c", PROGRAM, library]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        found[library] = json.loads(result.stdout)

    ours, torchs = found["auto"], found["torch"]
    assert ours["asked"] >= 12
    assert torchs["asked"] == 0
    assert ours["errors"] == torchs["errors"]
    assert len(ours["errors"]) == 2
    assert ours["expanded"] == pytest.approx(torchs["expanded"], rel=1e-6)
    for a, b in zip(ours["gradients"], torchs["gradients"], strict=True):
        torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-4, atol=1e-4)
