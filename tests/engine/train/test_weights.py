"""A new model begins with the same bits on every number of ranks in every layout, and no rank ever holds it whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

RANKS = Path(__file__).with_name("weights_ranks.py")
SECONDS = 200
LAYOUTS: dict[int, dict[str, dict[str, Any]]] = {
    2: {"ddp": {"strategy": "ddp"}, "fsdp2": {}, "tp": {"tp_size": 2}, "offload": {"offload_policy": "cpu"}},
    3: {"fsdp2": {}},
    4: {"hsdp": {"dp_replicate_size": 2}, "fsdp2 x tp": {"tp_size": 2}, "fsdp2 x cp": {"cp_size": 2}},
}
MODELS = {
    "gpt2": """
  _target_: automodel_cli.engine.models.gpt2.build_gpt2_model
  vocab_size: 61
  n_positions: 16
  n_embd: 32
  n_layer: 2
  n_head: 4
""",
    "tied llama": """
  _target_: transformers.AutoModelForCausalLM.from_config
  config:
    _target_: transformers.LlamaConfig
    vocab_size: 61
    hidden_size: 32
    intermediate_size: 48
    num_hidden_layers: 2
    num_attention_heads: 4
    num_key_value_heads: 2
    tie_word_embeddings: true
""",
    "user": """
  _target_: DIRECTORY/mine.py:build
""",
    "pretrained": """
  _target_: transformers.AutoModelForCausalLM.from_pretrained
  pretrained_model_name_or_path: DIRECTORY/pretrained
""",
}
WORDS = {"user": "as the constructor made them", "pretrained": "read by from_pretrained"}
# The largest part of it is its blocks, as in models that fill a machine.
LARGE = """
  _target_: automodel_cli.engine.models.gpt2.build_gpt2_model
  vocab_size: 61
  n_positions: 16
  n_embd: 512
  n_layer: 16
  n_head: 8
"""
BLOCK_BYTES = 12 * 512**2 * 4
USER_MODEL = """
import torch
from torch import nn


class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(61, 32), nn.Linear(32, 61)
        self.register_buffer("frequencies", torch.arange(4.0), persistent=False)

    def forward(self, input_ids):
        return self.head(self.embed(input_ids))


def build():
    return Mine()
"""


def started(tmp_path: Path, ranks: int, table: dict[str, tuple[str, dict[str, Any] | None]]) -> dict[str, Any]:
    """What rank 0 found, for each case: a model and a layout, which is None for a process alone."""
    (tmp_path / "mine.py").write_text(USER_MODEL)
    cases = {}
    for number, (name, (model, layout)) in enumerate(table.items()):
        config = tmp_path / f"case{number}.yaml"
        config.write_text(f"model:{model.replace('DIRECTORY', str(tmp_path))}")
        cases[name] = {"config": str(config), "layout": layout}
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    arguments = [str(ranks), str(tmp_path / "cases.json"), str(tmp_path / "out.json")]
    processes = [
        subprocess.Popen(
            [sys.executable, str(RANKS), str(tmp_path / f"store{ranks}"), str(rank), *arguments],
            # What is freed goes back to the system at once, so that the peak is that of what is in use.
            env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    errors = [process.communicate(timeout=SECONDS)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * ranks, "\n".join(errors)
    return json.loads((tmp_path / "out.json").read_text())


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [2, *(pytest.param(ranks, marks=pytest.mark.slow) for ranks in (3, 4))])
def test_every_layout_begins_with_the_bits_of_one_process(tmp_path, ranks):
    """Weights and buffers by hash, for our GPT-2, a tied Llama, a module of the user's, and weights of another tool."""
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4)).save_pretrained(tmp_path / "pretrained")
    table = {f"{model}, alone": (text, None) for model, text in MODELS.items()}
    for model, text in MODELS.items():
        for name, layout in LAYOUTS[ranks].items():
            if model != "user" or "tp_size" not in layout:  # it has no plan
                table[f"{model}, {name}"] = (text, layout)

    found = started(tmp_path, ranks, table)

    for name, result in found.items():
        alone = found[f"{name.rpartition(', ')[0]}, alone"]
        assert result["weights"] == alone["weights"], name
        assert result["buffers"] == alone["buffers"], name
        assert result["words"] == WORDS.get(name.partition(",")[0], "drawn in place from seed 7"), name


@pytest.mark.dist
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the peak of its memory")
@pytest.mark.slow
def test_no_rank_ever_holds_the_model(tmp_path):
    """Of 16 equal blocks a rank of 4 holds 4, and one more while it is drawn; a process alone holds all."""
    warm = {"warm": (MODELS["gpt2"], {})}  # what the first collectives take for themselves

    alone = started(tmp_path, 1, warm | {"large": (LARGE, None)})["large"]["grown"]
    shared = started(tmp_path, 4, warm | {"large": (LARGE, {})})["large"]["grown"]

    assert alone > 16 * BLOCK_BYTES
    assert shared < 8 * BLOCK_BYTES
