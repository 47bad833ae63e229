"""The benchmark of training measures what its command line says, and compares only what trains the same."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmark(monkeypatch):
    """`benchmarks/train.py` as a module."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("train")


def test_a_gpu_adds_shapes_compiled_variants_and_steps(benchmark):
    """The same command, on another machine."""
    on_gpu, on_cpu = benchmark.parse([], has_gpu=True), benchmark.parse([], has_gpu=False)

    assert (on_gpu.device, on_gpu.shape) == ("cuda", ["tiny", "124m", "350m", "1.5b"])
    assert (on_gpu.precision, on_gpu.compile, on_gpu.steps) == (["bf16"], True, 20)
    assert (on_cpu.device, on_cpu.shape) == ("cpu", ["tiny", "124m"])
    assert (on_cpu.precision, on_cpu.compile, on_cpu.steps) == (["fp32", "bf16"], False, 6)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--device", "cuda"], "torch finds no GPU"),
        (["--device", "cpu", "--shape", "1.5b"], "1.5b on cpu: only tiny, 124m"),
        (["--steps", "1"], "1 round of 2 steps"),
        (["--variant", "fastest"], "invalid choice"),
    ],
)
def test_what_cannot_be_measured_is_refused(benchmark, capsys, words, why):
    """Before anything is trained."""
    with pytest.raises(SystemExit):
        benchmark.parse(words, has_gpu=False)

    assert why in capsys.readouterr().err


def test_peers_that_are_missing_are_left_out_by_name(benchmark, capsys, monkeypatch):
    """And the base of the comparison is always there."""
    monkeypatch.setattr(benchmark, "left_out", lambda: {"transformers-trainer": "needs accelerate"})
    arguments = benchmark.parse(["--variant", "transformers-trainer", "amcli", "--compile"], has_gpu=False)

    assert benchmark.names_of(arguments) == ["nanogpt", "amcli", "nanogpt+compile", "amcli+compile"]
    assert "left out: transformers-trainer needs accelerate" in capsys.readouterr().err


def run_of(*losses):
    return {"losses": list(losses), "seconds": [2.0], "first_seconds": 3.0, "peak_bytes": 2**20}


def test_a_variant_that_trains_something_else_stops_the_benchmark(benchmark):
    """To 4 digits in fp32; a rate without this would be no result."""
    base = [run_of(10.0, 9.0)]

    row = benchmark.row_of("cpu", "tiny", "amcli", "fp32", [{**run_of(10.0, 9.0001), "seconds": [1.0]}], base)

    assert (row["times_base"], row["tokens_per_second"], row["mfu"]) == (2.0, 2048, None)
    with pytest.raises(SystemExit, match=r"its loss is off by 0\.0010"):
        benchmark.row_of("cpu", "tiny", "amcli", "fp32", [run_of(10.0, 9.001)], base)


def test_the_cost_of_a_token_is_the_formula_over_the_matrices(benchmark):
    """6N + 12LCT of GPT-2's 124M with a padded vocabulary: N without positions, norms and biases."""
    weights = 12 * 12 * 768**2 + 50_304 * 768

    assert benchmark.cost_of_token("124m", 1024) == 6 * weights + 12 * 12 * 768 * 1024


@pytest.mark.parametrize("name", ["nanogpt", "transformers", "amcli-whole-logits", "amcli"])
def test_every_way_trains_the_same(benchmark, monkeypatch, name):
    """From the same weights over the same batches, the losses of three steps agree to 4 digits."""
    monkeypatch.setattr(benchmark, "VOCAB", 512)
    monkeypatch.setitem(benchmark.SIZES, "tiny", {"n_layer": 1, "n_embd": 32, "n_head": 2})
    monkeypatch.setitem(benchmark.BATCHES["cpu"], "tiny", (2, 16))

    base = benchmark.run_variant("nanogpt", "tiny", "fp32", 3, "cpu")
    found = benchmark.run_variant(name, "tiny", "fp32", 3, "cpu")

    assert found["losses"] == pytest.approx(base["losses"], abs=5e-4)
    assert len(set(base["losses"])) == 3
    assert len(found["seconds"]) == 2
