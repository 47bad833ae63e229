"""Liger's loss is used as it is meant, or refused; nothing takes its place in silence."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from automodel_cli.engine.loss.liger import LigerLinearCrossEntropy
from automodel_cli.engine.loss.linear_ce import ChunkedLinearCrossEntropy
from automodel_cli.errors import ConfigError


@pytest.fixture
def with_liger(monkeypatch):
    """As on a machine where it is installed and a GPU is found."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_without_the_package_it_is_refused_with_the_command_that_installs_it(monkeypatch):
    """When the run is built, before any step."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(ConfigError, match="needs liger-kernel") as caught:
        LigerLinearCrossEntropy()

    assert "amcli[liger]" in caught.value.help


def test_without_a_gpu_it_is_refused_with_what_works(monkeypatch):
    """Another loss under its name would be another result."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(ConfigError, match="torch finds none") as caught:
        LigerLinearCrossEntropy()

    assert "ChunkedLinearCrossEntropy" in caught.value.help


@pytest.mark.usefixtures("with_liger")
def test_a_model_on_the_cpu_of_a_machine_with_a_gpu_is_refused():
    """Its kernels would read memory that is not theirs."""
    hidden, weight, labels = torch.zeros(1, 2, 4), torch.zeros(3, 4), torch.zeros(1, 2, dtype=torch.int64)

    with pytest.raises(ConfigError, match="the model is on cpu"):
        LigerLinearCrossEntropy().of_hidden(hidden, weight, None, labels, num_label_tokens=2)


@pytest.mark.usefixtures("with_liger")
@pytest.mark.parametrize(("options", "words"), [({"z_loss": -1}, "z_loss is -1"), ({"label_smoothing": 1}, "below 1")])
def test_impossible_options_are_refused(options, words):
    """As by every loss."""
    with pytest.raises(ConfigError, match=words):
        LigerLinearCrossEntropy(**options)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"z_loss": 0.01, "label_smoothing": 0.1}])
def test_on_a_gpu_it_is_the_chunked_loss(options):
    """Value and gradients under bf16 autocast, with masked labels."""
    pytest.importorskip("liger_kernel")
    torch.manual_seed(0)
    hidden = torch.randn(2, 64, 128, device="cuda", requires_grad=True)
    weight = torch.randn(503, 128, device="cuda", requires_grad=True)
    labels = torch.randint(503, (2, 64), device="cuda")
    labels[0, :9] = -100
    results = []
    for kind in (LigerLinearCrossEntropy, ChunkedLinearCrossEntropy):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = kind(**options).of_hidden(hidden.bfloat16(), weight, None, labels, num_label_tokens=119)
        results.append([loss, *torch.autograd.grad(loss, [hidden, weight])])

    torch.testing.assert_close(results[0], results[1], rtol=2e-2, atol=1e-3)
