"""A run on packed documents trains, keeps documents apart, and resumes bit for bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from automodel_cli.app import run
from automodel_cli.engine.data.nanogpt_dataset import NanogptDataset
from automodel_cli.engine.data.packed_dataset import PackedDataset
from automodel_cli.engine.models.calling import call
from automodel_cli.engine.models.gpt2 import build_gpt2_model

PACKED = ["--set", "packed_sequence.packed_sequence_size=16", "--set", "lr_scheduler.lr_decay_style=constant"]


def weights_of(directory):
    manifest = json.loads((directory / "manifest.json").read_text())
    return {name: record["sha256"] for name, record in manifest["files"].items() if name.startswith("model/")}


def test_a_packed_run_resumes_bit_for_bit(tiny_run, capsys):
    """Six steps straight, and four and two: the same weights by SHA-256."""
    straight, parts = (f"checkpoint.checkpoint_dir={name}" for name in ("straight", "parts"))
    assert run(["pretrain", "-c", str(tiny_run), *PACKED, "--set", straight]) == 0
    assert run(["pretrain", "-c", str(tiny_run), *PACKED, "--set", parts, "--set", "step_scheduler.max_steps=4"]) == 0
    assert run(["resume", "parts", "--set", "step_scheduler.max_steps=6"]) == 0
    capsys.readouterr()

    root = tiny_run.parent
    assert weights_of(root / "straight/step_000006") == weights_of(root / "parts/step_000006")


def test_a_document_is_computed_the_same_in_a_pack_as_alone(tiny_data):
    """Our model sees nothing of the other documents in the pack, and counts positions from each one's start."""
    torch.manual_seed(0)
    model = build_gpt2_model(vocab_size=257, n_positions=1024, n_embd=16, n_layer=2, n_head=2).eval()
    dataset = PackedDataset(NanogptDataset(str(tiny_data / "val_*.bin"), 8), 1024)
    packs = dataset.gather(np.arange(len(dataset)))
    rows = [row for row in range(len(dataset)) if packs["document_ids"][row].max() > 0]
    row = {name: torch.from_numpy(values[rows[:1]]) for name, values in packs.items()}

    with torch.no_grad():
        together = call(model, row).logits
        for number in row["document_ids"].unique().tolist():
            here = row["document_ids"][0] == number
            alone = model(row["input_ids"][:, here]).logits
            torch.testing.assert_close(together[:, here], alone, rtol=1e-4, atol=1e-5)


def test_packs_longer_than_the_model_are_refused(tiny_run, capsys):
    """Before anything is built."""
    with_long = ["--set", "packed_sequence.packed_sequence_size=17"]

    assert run(["pretrain", "-c", str(tiny_run), *with_long]) == 2
    assert "packed_sequence_size is 17, but the model has 16 positions" in capsys.readouterr().err


def test_another_kind_of_dataset_cannot_be_packed():
    """Nothing is known of its documents."""
    from automodel_cli.engine.data.packed_dataset import pack_documents
    from automodel_cli.errors import ConfigError

    with pytest.raises(ConfigError, match="the dataset is a list"):
        pack_documents([], 8)
