"""Where a run computes, and what it says when that is not possible."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from automodel_cli import app
from automodel_cli.engine.train.device import place
from automodel_cli.errors import ConfigError

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this is about machines without a GPU")


def test_a_cpu_computes_in_fp32_unless_told_otherwise():
    """`auto` never changes the precision in silence; bf16 on a CPU is a choice."""
    assert place("cpu", "auto", None).autocast_dtype is None
    assert place("cpu", "bf16", None).autocast_dtype is torch.bfloat16
    assert place("cpu", "auto", None).memory_bytes() > 10**7


@needs_no_gpu
def test_a_gpu_that_is_not_there_is_refused():
    """With the setting that works everywhere."""
    with pytest.raises(ConfigError, match="device: auto"):
        place("cuda", "auto", None)


@pytest.mark.gpu
def test_a_gpu_trains_in_bf16_and_learns_as_the_cpu_does(tiny_run):
    """The default on a GPU is bf16 autocast; after 6 steps its losses are the CPU's within 1%."""
    options = ["pretrain", "-c", str(tiny_run), "--set", "model.dropout=0", "--set"]
    losses = []
    for root, device in (("on-cpu", "cpu"), ("on-gpu", "auto")):
        assert app.run([*options, f"checkpoint.checkpoint_dir={root}", "--set", f"device={device}"]) == 0
        records = [json.loads(line) for line in (Path(root) / "metrics.jsonl").read_text().splitlines()]
        losses.append([record["loss"] for record in records if record["event"] == "step"])

    assert place("auto", "auto", None).autocast_dtype is torch.bfloat16
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


def test_weights_get_the_type_of_the_precision_and_buffers_keep_theirs():
    """Weights made in bf16 are masters in fp32 for autocast; in bf16-params they are bf16, rotary frequencies never."""
    import transformers

    sizes = {"vocab_size": 61, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_attention_heads=4))
    frequencies = model.model.rotary_emb.inv_freq.clone()
    seen = []
    for precision in ("bf16-params", "bf16", "fp32"):
        place("cpu", precision, None).put(model)
        seen.append({parameter.dtype for parameter in model.parameters()})

    assert seen == [{torch.bfloat16}, {torch.float32}, {torch.float32}]
    assert torch.equal(model.model.rotary_emb.inv_freq, frequencies)


@needs_no_gpu
def test_tf32_is_refused_where_no_device_has_it():
    """A CPU would compute in fp32 and the log would say otherwise."""
    with pytest.raises(ConfigError, match=r"tf32.*Ampere"):
        place("cpu", "tf32", None)


def test_deterministic_runs_use_deterministic_algorithms_only(monkeypatch):
    """Torch is told, and the variable that cuBLAS reads is set before it is."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        place("cpu", "fp32", None, deterministic=True)

        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
