"""Rates, utilisation and time left: arithmetic that anyone can check."""

from __future__ import annotations

import pytest

from automodel_cli.engine.observe.speed import Speed, flops_per_token, peak_flops

STEP = {"loss": 2.0, "grad_norm": 1.0, "lr": 1e-3, "memory_bytes": 1, "tokens_seen": 1000, "data_wait_seconds": 0.5}


def test_utilisation_is_the_share_of_what_all_devices_could_do():
    """1000 tokens in 2 s on 4 devices, at 8 GFLOP a token and 10 TFLOP/s a device: 125 * 8e9 / 1e13 = 0.1."""
    stats = Speed(10, 4, 8_000_000_000, 1e13).stats(step=1, num_tokens=1000, step_seconds=2.0, **STEP)

    assert (stats.tokens_per_second, stats.tokens_per_second_per_device) == (500.0, 125.0)
    assert stats.mfu == pytest.approx(0.1)
    assert stats.data_wait_share == 0.25


@pytest.mark.parametrize("known", [{"flops_per_token": 8}, {"peak_flops": 1e12}, {}])
def test_without_one_of_its_sides_there_is_no_utilisation(known):
    """Rather than that of another device."""
    assert Speed(10, **known).stats(step=1, num_tokens=1000, step_seconds=2.0, **STEP).mfu is None


def test_the_time_left_follows_the_last_steps():
    """A slow first step, as of a compilation, is forgotten after 50 others."""
    speed = Speed(100)
    first = speed.stats(step=1, num_tokens=1, step_seconds=60.0, **STEP)
    later = [speed.stats(step=step, num_tokens=1, step_seconds=1.0, **STEP) for step in range(2, 52)]

    assert first.seconds_left == 60.0 * 99
    assert later[-1].seconds_left == pytest.approx(49.0)
    assert speed.stats(step=100, num_tokens=1, step_seconds=1.0, **STEP).seconds_left == 0.0


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.4),
        ("NVIDIA H200", 989.4),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA GB200", 2500.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("AMD Instinct MI300X", 1307.4),
    ],
)
def test_the_table_has_the_devices_of_the_field(name, tflops):
    """Under the names that torch tells; an H200 is no A100, and an L40S no L4."""
    assert peak_flops(name) == pytest.approx(tflops * 1e12)


@pytest.mark.parametrize("name", ["cpu, 2 threads", "NVIDIA T1000", "Quadro", ""])
def test_a_device_that_the_table_lacks_has_no_peak(name):
    """A wrong peak would be a wrong utilisation that nobody notices."""
    assert peak_flops(name) is None


def test_the_cost_of_a_token_is_the_formula():
    """6N + 12LCT, by hand."""
    assert flops_per_token(100, 2, 3, 5) == 600 + 12 * 2 * 3 * 5
