"""Attention round the ring of torch is attention over the whole sequence, both ways, and is proved before use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from automodel_cli.engine.distributed import context_parallel as ring
from automodel_cli.engine.distributed.context_parallel import (
    AttentionOverRanks,
    ring_attention,
    ring_fault,
    ring_obstacle,
)

KINDS = {
    "plain": {"heads": 4, "scale": None},
    "scaled": {"heads": 4, "scale": 0.3},
    "grouped queries": {"heads": 2, "scale": None},
}


def join(directory: Path, rank: int, ranks: int, device: torch.device) -> dist.ProcessGroup:
    torch.set_num_threads(1)
    store = dist.FileStore(str(directory / "store"), ranks)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks)
    assert dist.group.WORLD is not None
    return dist.group.WORLD


def differences(rank: int, ranks: int, group: dist.ProcessGroup, device: torch.device, dtype: torch.dtype) -> dict:
    """For each kind, how far results and gradients are from those of one process, relative to the largest."""
    found = {}
    for name, kind in KINDS.items():
        torch.manual_seed(0)
        heads = (4, kind["heads"], kind["heads"], 4)
        q, k, v, grad = (torch.randn(2, h, 16 * ranks, 16).to(device, dtype) for h in heads)
        whole = [part.clone().requires_grad_() for part in (q, k, v)]
        out = F.scaled_dot_product_attention(*whole, is_causal=True, enable_gqa=True, scale=kind["scale"])
        out.backward(grad)
        own = [part.chunk(ranks, 2)[rank].clone().requires_grad_() for part in (q, k, v)]
        mine = ring_attention(*own, group, scale=kind["scale"])
        mine.backward(grad.chunk(ranks, 2)[rank])
        pairs = [(out.detach(), mine.detach()), *((a.grad, b.grad) for a, b in zip(whole, own, strict=True))]
        found[name] = max(float((a.chunk(ranks, 2)[rank] - b).abs().max() / a.abs().max()) for a, b in pairs)
    return found


def attend(rank: int, ranks: int, directory: str) -> None:
    """One rank: what the ring gives beside one process, and what its proof says of it when sound and when broken."""
    cpu = torch.device("cpu")
    group = join(Path(directory), rank, ranks, cpu)
    gathering = AttentionOverRanks(group, rank)

    def gathered(q, k, v):
        with gathering:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    result = {"differs": differences(rank, ranks, group, cpu, torch.float32)}
    result["sound"] = [ring_fault(gathered, group, cpu, dtype) for dtype in (torch.float32, torch.bfloat16)]
    kernels = dict(ring._KERNELS)
    if rank == ranks - 1:  # one rank's kernel is wrong; all must hear of it
        ring._KERNELS["cpu"] = (
            lambda *parts, **options: kernels["cpu"][0](*parts, **options | {"scale": 0.5}),
            kernels["cpu"][1],
        )
    result["wrong"] = ring_fault(gathered, group, cpu, torch.float32)
    ring._KERNELS["cpu"] = (lambda *_parts, **_options: torch.ops.aten.no_such_kernel(), kernels["cpu"][1])
    result["missing"] = ring_fault(gathered, group, cpu, torch.float32)
    (Path(directory) / f"{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_ring_is_attention_over_the_whole_sequence(tmp_path, ranks):
    """Results and gradients of every kind of attention; a ring that is wrong or missing is told by its proof."""
    mp.spawn(attend, (ranks, str(tmp_path)), nprocs=ranks)

    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(ranks)]
    for result in results:
        assert all(difference < 2e-5 for difference in result["differs"].values()), result["differs"]
        assert result["sound"] == [None, None]
        assert result["wrong"] is not None
        assert "no_such_kernel" in result["missing"]
    assert "differs from attention over gathered keys" in results[-1]["wrong"]


def attend_on_gpus(rank: int, ranks: int, directory: str) -> None:
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    group = join(Path(directory), rank, ranks, device)
    attention = AttentionOverRanks(group, rank, device)
    result = {
        "differs": differences(rank, ranks, group, device, torch.bfloat16),
        "words": attention.in_words(device, torch.bfloat16, 64, 0.0),
    }
    (Path(directory) / f"{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.dist
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_ring_is_taken_on_gpus_and_is_right_there(tmp_path):
    """Its proof passes, and bf16 results agree with one GPU's as far as bf16 goes."""
    mp.spawn(attend_on_gpus, (2, str(tmp_path)), nprocs=2)

    for rank in range(2):
        result = json.loads((tmp_path / f"{rank}.json").read_text())
        assert result["words"] == "flash attention round a ring"
        assert all(difference < 0.03 for difference in result["differs"].values()), result["differs"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (("cuda", torch.bfloat16, 64, 0.0), None),
        (("cuda", torch.float16, 256, 0.0), None),
        (("cuda", torch.bfloat16, None, 0.0), None),
        (("cuda", torch.float32, 64, 0.0), "bf16, not float32"),
        (("cuda", torch.bfloat16, 12, 0.0), "multiples of 8 up to 256, not 12"),
        (("cuda", torch.bfloat16, 512, 0.0), "multiples of 8 up to 256, not 512"),
        (("cuda", torch.bfloat16, 64, 0.1), "drop different weights"),
        (("cpu", torch.bfloat16, 64, 0.0), "no rule for CPUs"),
    ],
)
def test_what_the_ring_does_not_take_is_said(kind, words):
    """The choice is made by what attention is like, and the reason is a sentence for the user."""
    obstacle = ring_obstacle(*kind)

    assert obstacle is None if words is None else words in obstacle


def test_a_slow_way_on_a_gpu_is_named(monkeypatch):
    """On CPUs gathering is the way; on a GPU it is called slow, with the reason, a failed proof among them."""
    attention = AttentionOverRanks(None, 0)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")

    assert attention.in_words(cpu, torch.float32, 64, 0.0) == "gathered keys and values"
    assert attention.in_words(gpu, torch.bfloat16, 64, 0.0) == "flash attention round a ring"
    assert attention.in_words(gpu, torch.bfloat16, 64, 0.1).startswith("gathered keys and values: SLOW, as ranks")
    monkeypatch.setattr(attention, "_ring_fault", "it differs")
    assert "SLOW, as the ring fails here: it differs" in attention.in_words(gpu, torch.bfloat16, 64, 0.0)
