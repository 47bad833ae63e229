"""A user's model and loss report numbers: they appear on the step line and in `metrics.jsonl`, alike on any ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from automodel_cli import app

CODE = """
import torch
from torch import nn

from automodel_cli.engine.models.gpt2 import GPT2LMHeadModel, build_gpt2_model
from automodel_cli.engine.protocols import Metric


class Reports(GPT2LMHeadModel):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        ids = kwargs.get("input_ids", args[0])
        output.metrics = {
            "largest_id": Metric(ids.max(), "max"),
            "num_inputs": Metric(torch.tensor(ids.numel()), "sum", "tokens"),
            "mean_id": ids.float().mean(),
        }
        return output


def build(**sizes):
    model = build_gpt2_model(**sizes)
    model.__class__ = Reports
    return model


class Loss:
    def __call__(self, logits, labels, *, num_label_tokens):
        total = nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")
        return total / num_label_tokens, {"logits/squared": logits.detach().float().square().mean()}
"""
NAMES = ("largest_id", "num_inputs", "mean_id", "logits/squared")
RANKS = ["--nproc-per-node=2"]


@pytest.fixture
def reported(tiny_run, capfd):
    """Trains the tiny run, whose model and loss report; returns the numbers of every step, and the output."""
    (tiny_run.parent / "mine.py").write_text(CODE)
    text = tiny_run.read_text().replace("automodel_cli.engine.models.gpt2.build_gpt2_model", "mine.py:build")
    tiny_run.write_text(text.replace("dropout: 0.1", "dropout: 0.0") + "loss_fn: {_target_: mine.py:Loss}\n")

    def trained(root: str, *arguments: str, **assignments: object):
        values = {"checkpoint__checkpoint_dir": root, **assignments}
        settings = [f"--set={name.replace('__', '.')}={value}" for name, value in values.items()]
        line = ["pretrain", "-c", str(tiny_run), *settings, *arguments]
        if arguments:
            done = subprocess.run([sys.executable, "-m", "automodel_cli", *line], check=False, timeout=200)
            code = done.returncode
        else:
            code = app.run(line)
        output = capfd.readouterr()
        assert code == 0, output.err
        records = map(json.loads, (Path(root) / "metrics.jsonl").read_text().splitlines())
        steps = [[record[name] for name in NAMES] for record in records if record["event"] == "step"]
        return steps, output.out

    return trained


def test_numbers_of_a_model_and_a_loss_are_reported(reported):
    """On the step line with their units, and in `metrics.jsonl`; the step is two micro-batches."""
    steps, output = reported("alone")

    assert len(steps) == 6
    assert all(num_inputs == 8 * 16 for _, num_inputs, *_ in steps)
    assert all(0 < mean < largest < 257 for largest, _, mean, _ in steps)
    assert "num_inputs 128 tokens" in output


def test_blocks_that_are_computed_again_report_once(reported):
    """Activation checkpointing runs the forward pass of a block twice; the numbers are the same."""
    plain, _ = reported("plain")

    again, _ = reported("again", activation_checkpointing__mode="full")

    assert again == [pytest.approx(step, rel=1e-4) for step in plain]


@pytest.mark.dist
@pytest.mark.parametrize(
    "layout",
    [
        {"distributed__strategy": "ddp"},
        pytest.param({"distributed__strategy": "fsdp2"}, marks=pytest.mark.slow),
        pytest.param({"distributed__strategy": "fsdp2", "compile__enabled": "true"}, marks=pytest.mark.slow),
        pytest.param({"distributed__tp_size": 2}, marks=pytest.mark.slow),
    ],
)
def test_numbers_do_not_depend_on_the_ranks(reported, layout):
    """One process and two ranks report the same numbers, to the rounding of the weights."""
    alone, _ = reported("alone")

    ranks, _ = reported("ranks", *RANKS, **layout)

    assert [pytest.approx(step, rel=1e-4) for step in alone] == ranks
