"""The benchmark of several ranks measures what fits, and counts what a ring sends."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

ROOT = Path(__file__).parents[2]


@pytest.fixture
def scaling(monkeypatch):
    """`benchmarks/scaling.py` as a module."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("scaling")


@pytest.mark.parametrize(
    ("num_gpus", "words", "expected"),
    [
        (0, [], {1: {"ddp"}, 2: {"ddp", "fsdp2", "tp2", "cp2"}}),
        (4, ["--layout", "fsdp2", "hsdp", "tp2"], {1: {"ddp"}, 2: {"fsdp2", "tp2"}, 4: {"fsdp2", "hsdp"}}),
    ],
)
def test_layouts_are_measured_on_the_ranks_that_they_need(scaling, num_gpus, words, expected):
    """HSDP from four ranks on, two-way splits on two; one process once."""
    found = scaling.cases(scaling.parse(words, num_gpus=num_gpus))

    assert len(found) == sum(map(len, expected.values()))
    assert {ranks: {layout for layout, count in found if count == ranks} for ranks in expected} == expected


def test_collectives_are_counted_as_a_ring_sends_them(scaling, tmp_path, monkeypatch):
    """An all-reduce twice, a gather once, each (n - 1) / n of its whole tensor; here as if four ranks took part."""
    monkeypatch.setattr(dist.ProcessGroup, "size", lambda group: 4)
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        with scaling.Recorder(torch.device("cpu"), 4) as recorder:
            dist.all_reduce(torch.zeros(100))
    finally:
        dist.destroy_process_group()

    assert recorder.sent == {"gathered": 0.0, "reduced": 600.0}


def test_the_formulas_for_what_a_rank_sends_hold(scaling):
    """The examples in their docstrings."""
    communication = importlib.import_module("scaling_peers.communication")

    found = doctest.testmod(communication)

    assert found.attempted >= 6
    assert not found.failed
