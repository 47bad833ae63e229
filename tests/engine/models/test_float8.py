"""8-bit products leave names, weights and the head as they are, and a machine without them is refused."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from automodel_cli.engine.models.float8 import check_float8, use_float8
from automodel_cli.engine.models.gpt2 import build_gpt2_model
from automodel_cli.engine.train.device import place
from automodel_cli.errors import ConfigError

GPU = torch.device("cuda")
SIZES = {"vocab_size": 64, "n_positions": 32, "n_embd": 64, "n_layer": 2, "n_head": 2}

needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="the extra fp8 is not installed")


def on_gpu(monkeypatch, capability, torchao):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: torchao)


def test_a_cpu_is_refused_before_the_run():
    """With what works instead."""
    with pytest.raises(ConfigError, match="only GPUs have it"):
        place("cpu", "fp8", None)


@pytest.mark.parametrize("capability", [(8, 0), (7, 5)])
def test_a_gpu_without_8_bit_products_is_refused(monkeypatch, capability):
    """By its compute capability, and with the one that is needed."""
    on_gpu(monkeypatch, capability, "there")

    with pytest.raises(ConfigError, match=rf"capability {capability[0]}\.{capability[1]} and it needs 8\.9"):
        check_float8(GPU)


def test_without_torchao_the_command_that_installs_it_is_named(monkeypatch):
    """And a GPU that has 8 bits, with torchao, is taken."""
    on_gpu(monkeypatch, (9, 0), None)
    with pytest.raises(ConfigError, match="needs torchao") as caught:
        check_float8(GPU)
    assert "amcli[fp8]" in caught.value.help

    on_gpu(monkeypatch, (9, 0), "there")
    check_float8(GPU)


@needs_torchao
def test_weights_keep_their_names_and_the_head_its_products():
    """The parameters are the same objects; only the layers of the blocks are exchanged."""
    model = build_gpt2_model(**{**SIZES, "vocab_size": 61})
    before = dict(model.named_parameters())

    words = use_float8(model, lambda module: module is model.lm_head, emulate=True)

    assert words == "8 linear layers; 1 stay in bf16, the head among them"
    assert all(before[name] is parameter for name, parameter in model.named_parameters())
    assert type(model.lm_head) is nn.Linear
    assert type(model.transformer.h[0].mlp.c_fc) is not nn.Linear


@needs_torchao
def test_layers_of_other_sizes_stay_as_they_are():
    """The kernels take multiples of 16; a model that has none of them is refused."""
    mixed = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 20), nn.Linear(20, 16))

    assert use_float8(mixed, lambda module: False, emulate=True).startswith("1 linear layers; 2 stay in bf16")
    with pytest.raises(ConfigError, match="Sequential has no linear layer"):
        use_float8(nn.Sequential(nn.Linear(20, 16)), lambda module: False, emulate=True)


@needs_torchao
def test_a_step_in_8_bits_is_near_that_in_bf16():
    """Loss within 1%, gradients of every weight in fp32 and within 15% in norm: rounding, not another model."""
    torch.manual_seed(0)
    model = build_gpt2_model(**SIZES)
    ids = torch.randint(64, (4, 32))
    results = []
    for converted in (False, True):
        if converted:
            use_float8(model, lambda module: module is model.lm_head, emulate=True)
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(ids).logits.flatten(0, 1).float(), ids.flatten())
        loss.backward()
        results.append((loss.item(), [parameter.grad for parameter in model.parameters() if parameter.dim() == 2]))

    (loss, gradients), (loss8, gradients8) = results
    assert loss8 == pytest.approx(loss, rel=0.01)
    assert loss8 != loss
    for mine, theirs in zip(gradients8, gradients, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - theirs).norm() < 0.15 * theirs.norm()


@needs_torchao
@pytest.mark.gpu
def test_a_gpu_multiplies_in_8_bits(tmp_path):
    """The kernels themselves, against bf16."""
    place("cuda", "fp8", None)
    model = build_gpt2_model(**SIZES).cuda()
    ids = torch.randint(64, (4, 32), device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        expected = model(ids).logits
        use_float8(model, lambda module: module is model.lm_head)
        found = model(ids).logits

    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1)
