"""What all tests share: a tiny run that trains in seconds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from automodel_cli.engine.prep.prepare import PrepOptions, prepare

# Before torch is imported: test processes share the cores with each other and with what they start. With as many
# threads in each as there are cores, a sixth of the processors' time went into waiting for threads of tiny products.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A slow machine is no defect: no test may fail for the time that an example took.
settings.register_profile("amcli", deadline=None)
settings.load_profile("amcli")

TINY = """
seed: 7
model:
  _target_: automodel_cli.engine.models.gpt2.build_gpt2_model
  vocab_size: 257
  n_positions: 16
  n_embd: 16
  n_layer: 2
  n_head: 2
  dropout: 0.1
dataset: &data
  _target_: automodel_cli.engine.data.nanogpt_dataset.NanogptDataset
  file_pattern: DATA/train_*.bin
  seq_len: 16
validation_dataset: {<<: *data, file_pattern: "DATA/val_*.bin"}
optimizer: {_target_: torch.optim.AdamW, lr: 1e-2}
lr_scheduler: {lr_decay_style: cosine, lr_warmup_steps: 2}
step_scheduler:
  max_steps: 6
  global_batch_size: 8
  local_batch_size: 4
  val_every_steps: 3
  val_batches: 2
  ckpt_every_steps: 2
num_threads: 1
checkpoint: {checkpoint_dir: checkpoints}
"""


@pytest.fixture(autouse=True)
def _no_columns(monkeypatch):
    """Output is as wide as it likes, whatever the caller's shell, or a parallel test runner, exports."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Verdicts on tokenizers, and what was started, are kept for the tests, and never among the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """Shards of a part of the embedded text, made once."""
    directory = tmp_path_factory.mktemp("data")
    prepare(PrepOptions(source="shakespeare", output_dir=directory, max_tokens=50_000, val_tokens=5_000))
    return directory


@pytest.fixture
def tiny_run(tiny_data, tmp_path, monkeypatch) -> Path:
    """A configuration of a tiny run; the working directory is the test's own."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.replace("DATA", str(tiny_data)))
    return path


@pytest.fixture
def named_shards(tmp_path, monkeypatch) -> Path:
    """The working directory of the test: empty files where the examples and presets expect their shards."""
    for directory in ("data/shakespeare", "data/fineweb"):
        (tmp_path / directory).mkdir(parents=True)
        for split in ("train", "val"):
            (tmp_path / directory / f"{split}_000000.bin").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path
